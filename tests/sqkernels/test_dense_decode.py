"""The baseline of our own is right, too."""

import pytest
import torch
from codes_for_tests import DEVICE, relative_error

from sqkernels.common.runtime import variants
from sqkernels.dense_decode import dense_decode, reference

KERNELS = ("triton", *variants("dense_decode"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 63, 700])
@pytest.mark.parametrize("dim,group", [(64, 3), (96, 4), (128, 8), (256, 1)])
def test_kernel_against_float64(dim, group, tokens, dtype, backend):
    generator = torch.Generator().manual_seed(tokens)
    keys, values = (torch.randn(2, 2, tokens, dim, generator=generator).to(DEVICE, dtype) for _ in range(2))
    query = torch.randn(2, 2 * group, dim, generator=generator).to(DEVICE, dtype)
    want = reference.dense_decode(query, keys, values, dim**-0.5, torch.float64)
    got = dense_decode(query, keys, values, backend=backend)
    assert relative_error(got, want) <= 4 * torch.finfo(dtype).eps


def test_wrong_arguments_are_refused():
    x = torch.zeros(1, 2, 5, 64)
    with pytest.raises(ValueError, match="disagree"):
        dense_decode(torch.zeros(1, 3, 64), x, x)
    with pytest.raises(ValueError, match="at most 16"):
        dense_decode(torch.zeros(1, 34, 64), x, x)
