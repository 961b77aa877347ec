"""The kernels as `torch.library` operators: schemas that tell what is written, and fake tensors of the right shape."""

import itertools

import pytest
import torch
from codes_for_tests import exact_for, matrices_for, pages_for, query_for

from sqkernels.common.launch import LayoutArguments, exact_arguments
from sqkernels.spectral_compress.ops import _encoders
from sqkernels.spectral_index_decode.budget import budget_arguments

CHECKS = ("test_schema", "test_faketensor")


@pytest.fixture(scope="module")
def parts():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact = pages_for(matrices, [200, 150]), exact_for(matrices, 2, 4, [9, 5])
    return matrices, pages, exact, query_for(matrices, 2, 3)


def attention(parts):
    m, pages, exact, query = parts
    place = (query, pages.storage, pages.pages, pages.first, pages.tokens, m.heads)
    return (*place, m.key.decode, m.key.constant, m.value.decode, m.value.constant), exact_arguments(exact)


def test_decode(parts):
    import sqkernels.spectral_decode.ops  # noqa: F401 (registers the operator)

    first, exact = attention(parts)
    arguments = (*first, *exact, 0.125, 1, LayoutArguments.of(parts[0]).numbers)
    torch.library.opcheck(torch.ops.sqkernels.spectral_decode, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("budget", [20, 0.25], ids=str)
def test_index_decode(parts, budget):
    import sqkernels.spectral_index_decode.ops  # noqa: F401

    first, exact = attention(parts)
    chosen = budget_arguments(budget, parts[1])
    arguments = (*first, parts[0].index.decode, *exact, *chosen, 0.125, 1, LayoutArguments.of(parts[0]).numbers)
    torch.library.opcheck(torch.ops.sqkernels.spectral_index_decode, arguments, test_utils="test_faketensor")


def test_compress(parts):
    matrices = parts[0]
    block = torch.randn(1, 2, 100, 64, generator=torch.Generator().manual_seed(0)).to(matrices.device)
    storage = torch.zeros(matrices.layout.page_bytes, dtype=torch.uint8, device=matrices.device)
    where = torch.zeros(1, dtype=torch.int64, device=matrices.device)
    kinds = [_encoders(k) for k in (matrices.key, matrices.value, matrices.index)]
    arguments = (block, block, storage, where, matrices.heads, *itertools.chain(*kinds))
    layout = LayoutArguments.of(matrices).numbers
    torch.library.opcheck(torch.ops.sqkernels.spectral_compress, (*arguments, layout), test_utils=CHECKS)


def test_reconstruct(parts):
    import sqkernels.spectral_reconstruct.ops  # noqa: F401

    matrices, pages, *_ = parts
    empty = torch.zeros(0, device=matrices.device)
    decoders = (matrices.key.decode_half, matrices.key.constant, matrices.value.decode_half, matrices.value.constant)
    arguments = (pages.storage, pages.pages, matrices.heads, *decoders, empty, empty, torch.float16)
    layout = LayoutArguments.of(matrices).numbers
    torch.library.opcheck(torch.ops.sqkernels.spectral_reconstruct, (*arguments, layout), test_utils=CHECKS)
