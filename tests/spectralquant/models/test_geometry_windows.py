"""Windows and owners of keys and values, found by the masks that a model makes."""

import pytest
from conftest import random_model

from spectralquant.errors import UnsupportedModelError
from spectralquant.geometry import CacheGeometry, LayerGroup
from spectralquant.models.probe import probe_geometry

GEMMA3N = {
    "head_dim": 16,
    "sliding_window": 64,
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 6,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 512,
    "activation_sparsity_pattern": None,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}
FOUND = {
    "llama": ({}, ()),
    "mistral": ({"sliding_window": 300}, (300, 300, 300)),
    "mixtral": ({"sliding_window": 64, "num_local_experts": 2}, (64, 64, 64)),
    "starcoder2": ({"sliding_window": 64}, (64, 64, 64)),
    "phi3": ({"sliding_window": 300}, (300, 300, 300)),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1}, (None, 300, 300)),
    "gemma2": ({"sliding_window": 300}, (300, None, 300)),
    "gemma3_text": (
        {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
        (64,) * 5 + (None,),
    ),
    "olmo3": ({"sliding_window": 64, "num_hidden_layers": 4}, (64, 64, 64, None)),
    "gemma3n_text": (GEMMA3N, (64, None, 64, None)),
}


@pytest.mark.parametrize("architecture", FOUND)
def test_windows_are_read_from_masks(architecture):
    changes, expected = FOUND[architecture]
    assert probe_geometry(random_model(architecture, **changes)).windows == expected


def test_a_window_that_transformers_own_cache_does_not_know_is_refused():
    """The same text would then be read differently with and without a cache."""
    model = random_model("mistral", sliding_window=300)
    model.config.layer_types = ["full_attention"] * 3
    with pytest.raises(UnsupportedModelError, match="neither full nor sliding"):
        probe_geometry(model)


def test_groups_and_what_a_cache_keeps():
    geometry = CacheGeometry(4, 4, 2, 16, (True,) * 4, (64, None, 300, None))
    assert geometry.groups == (LayerGroup((1, 3), None), LayerGroup((2,), 300), LayerGroup((0,), 64))
    assert geometry.fp16_bytes(10) == 10 * geometry.fp16_bytes_per_token
    assert geometry.fp16_bytes(1000) == (2 * 1000 + 299 + 63) * geometry.fp16_bytes_per_token // 4
    assert geometry.part((0, 2)).windows == (64, 300)
