"""Shapes by name, with fields changed, and of one's own; random models of them."""

import pytest

from spectralquant.errors import InputError
from spectralquant.models.config import load_config
from spectralquant.models.load import load_model
from spectralquant.models.shapes import SHAPES, parse_shape


def test_a_named_shape_takes_changed_fields():
    shape = parse_shape("llama-3.1-70b:layers=4")
    named = SHAPES["llama-3.1-70b"]
    assert (shape.layers, shape.name) == (4, "llama-3.1-70b:layers=4")
    for field in ("heads", "kv_heads", "head_dim", "hidden", "intermediate", "vocab"):
        assert getattr(shape, field) == getattr(named, field)
    both = parse_shape("qwen2.5-7b:layers=2,vocab=500")
    assert (both.layers, both.vocab, both.heads) == (2, 500, 28)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llama-3.1-7b:layers=4", "llama-3.1-8b"),
        ("llama-3.1-8b:", "positive number"),
        ("llama-3.1-8b:layer=4", "not one of layers"),
        ("llama-3.1-8b:layers=0", "positive number"),
        ("llama-3.1-8b:layers=4,layers=5", "twice"),
        ("llama-3.1-8b:kv_heads=5", "multiple"),
        ("custom:layers=1,heads=3,kv_heads=2,head_dim=64", "multiple"),
        ("custom", "needs layers, heads, kv_heads, head_dim"),
    ],
)
def test_wrong_shapes_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_shape(text)


def test_a_random_model_with_fewer_layers():
    spec = "random:smollm2-135m:layers=2,vocab=400"
    assert load_config(spec).num_hidden_layers == 2
    loaded = load_model(spec, device="cpu")
    assert (loaded.geometry.layers, loaded.geometry.heads, loaded.geometry.head_dim) == (2, 9, 64)
    assert loaded.name == spec
