"""The kernels as `torch.library` operators: schemas that tell what is written, and fake tensors of the right shape."""

import pytest
import torch
from codes_for_tests import exact_for, matrices_for, pages_for, query_for

from sqkernels.common.attention import AttentionTensors
from sqkernels.common.launch import LayoutArguments
from sqkernels.spectral_compress.ops import CompressCall
from sqkernels.spectral_index_decode.budget import BudgetArguments
from sqkernels.spectral_reconstruct.ops import ReconstructCall

CHECKS = ("test_schema", "test_faketensor")


@pytest.fixture(scope="module")
def parts():
    matrices = matrices_for(2, 64, [4] * 64, index=16)
    pages, exact = pages_for(matrices, [200, 150]), exact_for(matrices, 2, 4, [9, 5])
    return matrices, pages, exact, query_for(matrices, 2, 3)


def attention(parts):
    m, pages, exact, query = parts
    return AttentionTensors.of(query, pages, exact).as_list(), LayoutArguments.of(m).numbers


def test_decode(parts):
    import sqkernels.spectral_decode.ops  # noqa: F401 (registers the operator)

    torch.library.opcheck(torch.ops.sqkernels.spectral_decode, (*attention(parts), 0.125, 1), test_utils=CHECKS)


@pytest.mark.parametrize("budget", [20, 0.25], ids=str)
def test_index_decode(parts, budget):
    import sqkernels.spectral_index_decode.ops  # noqa: F401

    tensors, layout = attention(parts)
    allowed = BudgetArguments.of(budget, parts[1])
    index = [parts[0].index.decode, allowed.by_head]
    arguments = (tensors, index, layout, 0.125, allowed.share, allowed.numbers, 1)
    torch.library.opcheck(torch.ops.sqkernels.spectral_index_decode, arguments, test_utils="test_faketensor")


def test_compress(parts):
    matrices = parts[0]
    block = torch.randn(1, 2, 100, 64, generator=torch.Generator().manual_seed(0)).to(matrices.device)
    storage = torch.zeros(matrices.layout.page_bytes, dtype=torch.uint8, device=matrices.device)
    where = torch.zeros(1, dtype=torch.int64, device=matrices.device)
    tensors = CompressCall.of(block, block, where, matrices).as_list()
    arguments = (storage, tensors, LayoutArguments.of(matrices).numbers)
    torch.library.opcheck(torch.ops.sqkernels.spectral_compress, arguments, test_utils=CHECKS)


def test_reconstruct(parts):
    matrices, pages, *_ = parts
    tensors = ReconstructCall.of(pages.storage, pages.pages, matrices, None).as_list()
    arguments = (tensors, LayoutArguments.of(matrices).numbers, torch.float16)
    torch.library.opcheck(torch.ops.sqkernels.spectral_reconstruct, arguments, test_utils=CHECKS)
