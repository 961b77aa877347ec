"""Every method on a model with sliding layers is measured against the same bytes: those of transformers' own cache."""

import pytest
import torch
from conftest import random_model, small_tokenizer
from transformers import DynamicCache

from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.streaming import stream_window
from spectralquant.geometry import BLOCK
from spectralquant.methods import get
from spectralquant.methods.context import MethodContext
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry

HYBRID = ["sliding_attention"] * 2 + ["full_attention"]
SHAPES = {
    "sliding": ("mistral", {"sliding_window": 300}),
    "hybrid": ("gemma3_text", {"sliding_window": 300, "layer_types": HYBRID}),
    "narrow": ("gemma3_text", {"sliding_window": 64, "layer_types": HYBRID}),
}
METHODS = {
    "none": {},
    "fp8": {},
    "turboquant": {"bits": 4.0},
    "kvtc": {"ratio": 4.0},
    "h2o": {"keep": 0.3},
    "snapkv": {"keep": 0.3},
    "expected_attention": {"keep": 0.3},
    "streaming_llm": {"keep": 0.3},
    "heavy_hitter": {"threshold": 1.5},
    "h2o+turboquant": {"keep": 0.5, "bits": 4.0},
    "expected_attention+turboquant": {"keep": 0.5, "bits": 4.0},
}
TOKENS = 1000


def ids(tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(5, 500, (tokens,), generator=torch.Generator().manual_seed(0))


def loaded_model(name: str) -> LoadedModel:
    architecture, changes = SHAPES[name]
    model = random_model(architecture, **changes)
    return LoadedModel(name, model, small_tokenizer(), probe_geometry(model))


@pytest.mark.parametrize("name", SHAPES)
def test_one_baseline_for_all(name):
    loaded = loaded_model(name)
    own = DynamicCache(config=loaded.model.config)
    with torch.no_grad():
        loaded.model(input_ids=ids()[None], past_key_values=own)
    float16 = sum(2 * 2 * layer.keys.numel() for layer in own.layers)
    context = MethodContext(loaded, windows=ids().view(1, -1))
    methods = [get(method, **options).build(context) for method, options in METHODS.items()]
    found = measure(loaded.model, loaded.geometry, ids().view(1, -1), methods)
    rows = {m.method: m.row(loaded.geometry, name, TOKENS) for m in found}
    assert {row["fp16_bytes"] for row in rows.values()} == {float16}
    for row in rows.values():
        assert row["whole_cache_ratio"] == pytest.approx(float16 / row["resident_bytes"], rel=1e-4)
    assert rows["none"]["payload_ratio"] == pytest.approx(1, abs=0.01) and rows["none"]["kl_nats"] < 1e-5
    assert rows["fp8"]["payload_ratio"] == pytest.approx(2, rel=0.05)
    for name in ("h2o", "snapkv", "streaming_llm"):
        assert 3.1 < rows[name]["payload_ratio"] < 3.4, "3.3 of the readable tokens, and 2 bytes of memory an entry"


@pytest.mark.parametrize("name", SHAPES)
def test_what_lies_beyond_a_window_is_held_by_nobody(name):
    """Counted by hand: coded are the tokens between sinks and window that a layer can still read."""
    loaded = loaded_model(name)
    method = get("none").build(MethodContext(loaded))
    total = stream_window(loaded.model, loaded.geometry, ids(), [method])[0]
    stop = (TOKENS - 1) // BLOCK * BLOCK
    coded = 0
    for window in loaded.geometry.windows:
        if window is None or window > 2 * BLOCK:
            coded += stop - max(4, 0 if window is None else TOKENS - window + 1)
    assert total.coded_fp16_bytes == coded * loaded.geometry.fp16_bytes_per_token // 3
    assert total.coded_bytes == pytest.approx(total.coded_fp16_bytes, abs=16)


def test_layers_whose_window_stays_exact_are_left_alone():
    loaded = loaded_model("narrow")
    seen = []
    method = get("turboquant", bits=2.0).build(MethodContext(loaded))
    stream_window(
        loaded.model, loaded.geometry, ids(), [method], lambda i, block, encoded: seen.append(block.keys.shape[1])
    )
    assert set(seen) == {1}
