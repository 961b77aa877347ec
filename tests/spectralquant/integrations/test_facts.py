"""Engines whose cache can be stored, and those that are refused with the way out."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from spectralquant.errors import InputError
from spectralquant.integrations.vllm.facts import current, facts_of, known, weights_text


@dataclass
class Spec:
    """As vLLM's specification of an attention layer's cache."""

    num_kv_heads: int = 2
    head_size: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    page_size_padded: int | None = None
    state_content_bytes: int | None = None


class MLAAttentionSpec(Spec):
    pass


@dataclass
class Group:
    kv_cache_spec: object = field(default_factory=Spec)
    layer_names: tuple[str, ...] = tuple(f"model.layers.{i}.self_attn.attn" for i in (0, 1, 10, 2))


@pytest.fixture
def engine(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))

    def build(groups=None, config=None, **parallel):
        sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "decode_context_parallel_size": 1} | parallel
        model = SimpleNamespace(
            model=str(tmp_path),
            revision=None,
            quantization=None,
            dtype=torch.bfloat16,
            seed=0,
            hf_config=SimpleNamespace(to_dict=lambda: config or {"layers": 4}),
            get_total_num_kv_heads=lambda: 4,
        )
        vllm = SimpleNamespace(
            model_config=model,
            parallel_config=SimpleNamespace(**sizes),
            cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256"),
            load_config=SimpleNamespace(load_format="auto"),
        )
        return facts_of(vllm, SimpleNamespace(kv_cache_groups=groups or [Group()]), "HND")

    return build


def test_layers_are_in_the_models_order_and_heads_those_of_all_ranks(engine):
    facts = engine()
    assert facts.order == (0, 1, 3, 2) and facts.layers == 4
    assert (facts.kv_heads, facts.ranks, facts.shape.kv_heads) == (4, 2, (4, 4, 4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [Group(), Group()]}, "disable-hybrid-kv-cache-manager"),
        ({"groups": [Group(MLAAttentionSpec())]}, "no plain keys and values"),
        ({"groups": [Group(Spec(dtype=torch.uint8))]}, "kv-cache-dtype auto"),
        ({"groups": [Group(Spec(page_size_padded=5))]}, "packed or padded"),
        ({"groups": [Group(Spec(state_content_bytes=5))]}, "packed or padded"),
        (
            {"groups": [Group(SimpleNamespace(kv_cache_specs={"a": Spec(), "b": Spec(head_size=128)}))]},
            "different sizes",
        ),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
        ({"decode_context_parallel_size": 2}, "set it to 1"),
        ({"tensor_parallel_size": 8}, "at most 4 ranks"),
    ],
)
def test_what_cannot_be_stored_is_refused(engine, change, message):
    with pytest.raises(InputError, match=message):
        engine(**change)


def test_other_weights_or_another_configuration_are_another_namespace(engine, tmp_path):
    first = engine().namespace("c", 128)
    assert engine().namespace("c", 128) == first
    assert len({first, engine().namespace("d", 128), engine().namespace("c", 256)}) == 3
    assert engine(config={"rope_theta": 5}).namespace("c", 128) != first
    (tmp_path / "model.safetensors").write_bytes(bytes(999) + b"\1")
    assert engine().namespace("c", 128) != first


def test_a_hubs_model_that_is_not_here_is_refused():
    with pytest.raises(InputError, match="not on this machine"):
        weights_text("nobody/no-such-model", None)


def test_another_connector_is_refused(engine):
    with pytest.raises(InputError, match="SpectralConnector"):
        current()
    facts = engine()
    with known(facts):
        assert current() is facts
