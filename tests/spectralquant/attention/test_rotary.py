"""Rotary embedding: judged at one layer whatever the depth and dtype, in every layout, and as the model used it."""

import pytest
import torch
from conftest import random_model
from transformers import AutoConfig, AutoModelForCausalLM

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.rotary_probe import rotary_probe
from spectralquant.hooks.rotary_tables import Places, RotaryTables
from spectralquant.hooks.tap import AttentionTap
from spectralquant.models.load import load_model
from spectralquant.models.probe import probe_geometry
from spectralquant.rotary import undo_rope
from spectralquant.rotary_layout import RotaryLayout

NARROW = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 131_072,
}


def deep_model(kind: str, layers: int, dtype: torch.dtype, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**NARROW, "num_hidden_layers": layers, **changes})
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("layers", [32, 80])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3"])
def test_depth_and_dtype_do_not_matter(kind, dtype, layers):
    extra = {"pad_token_id": 0, "partial_rotary_factor": 0.5} if kind == "phi3" else {}
    model = deep_model(kind, layers, dtype, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, **extra)
    geometry = probe_geometry(model)
    assert geometry.rotary == (True,) * layers and geometry.layout == RotaryLayout()


def test_what_the_first_pass_and_the_second_tell_apart_is_rotation_alone():
    """Hidden states of the two passes differ in 80 bfloat16 layers; the keys that are compared come from equal ones."""
    first, moved = rotary_probe(deep_model("llama", 80, torch.bfloat16))
    layout = RotaryLayout()
    for a, b in zip(first, moved, strict=True):
        x, y = (undo_rope(c.key[0].float(), c.rotation(layout)) for c in (a, b))
        assert (x - y).norm() < 0.01 * x.norm()
        assert torch.equal(a.value, b.value)


LAYOUTS = {
    "llama": (RotaryLayout("halves", "halves"), {}),
    "cohere": (RotaryLayout("neighbours", "neighbours"), {"eos_token_id": 1}),
    "glm": (RotaryLayout("neighbours", "halves"), {"pad_token_id": 0, "eos_token_id": 1}),
    "gpt_oss": (
        RotaryLayout("halves", "once"),
        {"head_dim": 16, "num_local_experts": 4, "pad_token_id": 0, "eos_token_id": 1},
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_found_and_undone(kind):
    layout, extra = LAYOUTS[kind]
    model = random_model(kind, **extra)
    geometry = probe_geometry(model)
    assert geometry.layout == layout and all(geometry.rotary)
    tables, positions = RotaryTables(model, geometry), torch.arange(3, 23)
    ids = torch.arange(20)[None]
    plain: dict[int, list[torch.Tensor]] = {}

    def observer(call):
        rotation = tables(Places(call_positions[None]))[call.layer]
        plain.setdefault(call.layer, []).append(undo_rope(call.key[0], rotation))

    for call_positions in (positions, positions + 400):
        with torch.no_grad(), AttentionTap(model, observer):
            model(input_ids=ids, position_ids=call_positions[None], use_cache=False)
    for a, b in plain.values():
        assert (a - b).norm() < 1e-3 * a.norm()


def dynamic_rope(kind: str) -> dict:
    half = 8
    return {
        "longrope": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1 + 0.05 * i for i in range(half)],
            "long_factor": [1.5 + i for i in range(half)],
            "original_max_position_embeddings": 512,
            "factor": 8.0,
        },
        "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    }[kind]


def dynamic_model(kind: str):
    if kind == "longrope":
        return random_model(
            "phi3", partial_rotary_factor=1.0, original_max_position_embeddings=512, rope_parameters=dynamic_rope(kind)
        )
    return random_model("llama", max_position_embeddings=512, rope_parameters=dynamic_rope(kind))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_tables_follow_the_frequencies_a_pass_used_and_never_touch_the_model(kind):
    model = dynamic_model(kind)
    tables = RotaryTables(model, probe_geometry(model))
    rotary = model.model.rotary_emb
    x = torch.zeros(1, 1, 64)
    short, short_state = rotary(x, torch.arange(100)[None]), tables.frequencies()
    long, long_state = rotary(x, torch.arange(1300)[None]), tables.frequencies()
    before = rotary.inv_freq.clone()
    assert not torch.equal(short_state, long_state)
    assert torch.equal(tables.frequencies_of_prompt(100), short_state)
    assert torch.equal(tables.frequencies_of_prompt(1300), long_state)
    few = torch.arange(100)[None]
    for state, (cos, sin) in ((short_state, short), (long_state, long)):
        found = tables(Places(few, state[None], torch.zeros(100, dtype=torch.int64)))[0]
        assert torch.equal(found.cos, cos[0, :100, :8]) and torch.equal(found.sin, sin[0, :100, :8])
    assert torch.equal(rotary.inv_freq, before)
    mixed = Places(few, torch.stack([short_state, long_state]), (torch.arange(100) >= 40).long())
    found = tables(mixed)
    assert torch.equal(found[0].cos[:40], short[0][0, :40, :8])
    assert torch.equal(found[0].cos[40:], long[0][0, 40:100, :8])
    assert all(r is found[0] for r in found)


def test_an_unknown_rotary_embedding_that_looks_at_the_length_is_refused():
    model = random_model()
    rotary = type(model.model.rotary_emb)

    class StretchedRotaryEmbedding(rotary):
        def forward(self, x, position_ids):
            cos, sin = super().forward(x, position_ids)
            return cos, sin * (1 + position_ids.max())

    model.model.rotary_emb.__class__ = StretchedRotaryEmbedding
    with pytest.raises(UnsupportedModelError, match="longer sequences"):
        RotaryTables(model, probe_geometry(model))


def test_a_random_model_in_half_precision_keeps_its_rotary_frequencies():
    loaded = load_model("random:custom:layers=2,heads=2,kv_heads=1,head_dim=16", device="cpu", dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
