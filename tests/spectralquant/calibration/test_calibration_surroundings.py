"""Calibration gives the same profile whatever the caller has switched on, and leaves everything as it was."""

import contextlib

import pytest
import torch

import spectralquant as sq
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.errors import UnsupportedModelError
from spectralquant.text.read import load_text
from tests.conftest import random_model, small_tokenizer

PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def low_precision_products():
    before = [p.fp32_precision for p in PRODUCTS]
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        for product, value in zip(PRODUCTS, before, strict=True):
            product.fp32_precision = value


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default float64": lambda: default_dtype(torch.float64),
    "low precision products": low_precision_products,
}


def calibrated(model, tiers=("cold", "warm", "hot"), **options):
    settings = CalibrationSettings(window=384, tiers=tiers, held_out_windows=1, held_out_window=512, **options)
    text = list(load_text("builtin:pydoc"))
    return sq.calibrate(model, small_tokenizer(), text, steps=2, settings=settings, name="x")


@pytest.fixture(scope="module")
def plain():
    return calibrated(random_model())


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_profile_is_the_same_in_all_surroundings(name, plain):
    model = random_model()
    with SURROUNDINGS[name]():
        mine = calibrated(model)
    assert mine.id == plain.id
    assert mine.sidecar.model == plain.sidecar.model
    for tier, summary in plain.sidecar.tiers.items():
        assert mine.sidecar.tiers[tier] == summary


def test_a_training_model_with_dropout_is_calibrated_as_it_answers(plain):
    model = random_model(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    mine = calibrated(model)
    assert mine.id == plain.id
    assert [m.training for m in model.modules()] == modes


def test_what_was_switched_on_stays_so_also_after_an_error():
    model = random_model().train()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    calibrated(model, ("hot",))
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(sq_error()):
        sq.calibrate(model, small_tokenizer(), "far too short", steps=2)

    class StopError(Exception):
        pass

    def stop(stage, done, total):
        raise StopError

    settings = CalibrationSettings(window=384, tiers=("hot",), held_out_windows=1, held_out_window=512)
    implementation = model.config._attn_implementation
    with pytest.raises(StopError):
        text = list(load_text("builtin:pydoc"))
        sq.calibrate(model, small_tokenizer(), text, steps=2, settings=settings, progress=stop)
    assert model.training and all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert model.config._attn_implementation == implementation
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def sq_error():
    from spectralquant.errors import SpectralQuantError

    return SpectralQuantError


@pytest.mark.parametrize("metric", ("fisher", "attention", "energy"))
def test_weights_of_inference_mode_allow_what_needs_no_gradients(metric):
    with torch.inference_mode():
        model = random_model()
    if metric == "fisher":
        with pytest.raises(UnsupportedModelError, match=r"loaded in inference mode.*--metric attention"):
            calibrated(model, ("hot",), metric=metric)
    else:
        assert calibrated(model, ("hot",), metric=metric).id == calibrated(random_model(), ("hot",), metric=metric).id


def test_gradient_checkpointing_is_no_obstacle():
    model = random_model().train()
    model.gradient_checkpointing_enable()
    assert calibrated(model, ("hot",)).id == calibrated(random_model(), ("hot",)).id
    assert model.is_gradient_checkpointing
