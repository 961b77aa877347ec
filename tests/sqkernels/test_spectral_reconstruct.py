"""Codes back to keys and values against float64."""

import pytest
import torch
from codes_for_tests import matrices_for, pages_for, relative_error

from sqkernels.common.runtime import variants
from sqkernels.spectral_reconstruct import reference, spectral_reconstruct

KERNELS = ("triton", *variants("spectral_reconstruct"))
SHAPES = {
    "dim64-mixed": (64, [8] * 3 + [6, 5] + [4] * 40 + [3] * 3 + [2] * 9 + [1] * 3, 2),
    "dim96-4bit": (96, [4] * 96, 1),
    "dim128-ranks-by-head": (128, [([4] * 128, [2] * 60), ([*[8] * 9, *[4] * 50], [4] * 64)], 2),
    "dim256-4bit": (256, [4] * 256, 1),
}


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("rope", [False, True], ids=["plain", "rope"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_kernel_against_float64(name, dtype, rope, backend):
    dim, bits, kv = SHAPES[name]
    matrices = matrices_for(kv, dim, bits)
    pages = pages_for(matrices, [200, 129])
    tables = None
    if rope:
        angle = torch.rand(2, 256, dim // 2, generator=torch.Generator().manual_seed(8)).repeat(1, 1, 2) * 6
        tables = (angle.cos().to(matrices.device), angle.sin().to(matrices.device))
    want = reference.spectral_reconstruct(pages.storage, pages.pages, matrices, torch.float64, tables, torch.float64)
    got = spectral_reconstruct(pages.storage, pages.pages, matrices, dtype, tables, backend=backend)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert relative_error(g, w) <= 2 * relative_error(w.to(dtype), w) + 1e-3


def test_wrong_arguments_are_refused():
    matrices = matrices_for(1, 64, [4] * 64)
    pages = pages_for(matrices, [10])
    with pytest.raises(ValueError, match="int64 \\[B, N\\]"):
        spectral_reconstruct(pages.storage, pages.pages[0], matrices)
    with pytest.raises(ValueError, match="cos and sin"):
        spectral_reconstruct(pages.storage, pages.pages, matrices, rope=(torch.zeros(1), torch.zeros(1)))
