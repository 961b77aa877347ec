"""The gated product in one launch."""

import pytest
import torch

from sqkernels.gated import ACTIVATIONS, gated, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernel_against_float64(activation, dtype):
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    gate, up = (torch.randn(3, 1, 500, generator=generator, device=DEVICE).mul(4).to(dtype) for _ in range(2))
    x = gate.double()
    act = torch.nn.functional.silu(x) if activation == "silu" else torch.nn.functional.gelu(x, approximate="tanh")
    want = act * up.double()
    for backend in ("triton", "reference"):
        got = gated(gate, up, activation, backend=backend)
        assert got.dtype == dtype and got.shape == gate.shape
        assert float((got.double() - want).norm() / want.norm()) <= torch.finfo(dtype).eps


def test_extremes_stay_finite():
    gate = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], device=DEVICE)
    for activation in ACTIVATIONS:
        got = gated(gate, torch.ones_like(gate), activation, backend="triton")
        torch.testing.assert_close(got, reference.gated(gate, torch.ones_like(gate), activation))


def test_what_disagrees_is_refused():
    x = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="must be alike"):
        gated(x, x[:, :2], "silu")
    with pytest.raises(ValueError, match="not one of silu, gelu_tanh"):
        gated(x, x, "relu")
