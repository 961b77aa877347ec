"""Dense latent decode against float64, with error budgets from what float32 eager arithmetic on rounded inputs loses."""

import pytest
import torch
from codes_for_tests import DEVICE, exact_for, linear_code, matrices_for, pages_for, query_for, relative_error

from sqkernels.common import ExactTokens, RowMatrices, RowPages
from sqkernels.common.reference import coded_slots, exact_tokens, read_dense, sequence_pages
from sqkernels.common.runtime import variants
from sqkernels.spectral_decode import reference, spectral_decode
from sqkernels.spectral_decode.reference import attend

KERNELS = ("triton", *variants("spectral_decode"))
MIXED = [8] * 3 + [6, 5] + [4] * 40 + [3] * 3 + [2] * 9 + [1] * 3
RAGGED = [([8, 8, *[4] * 30], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11])]
SHAPES = {
    "dim64-4bit": (64, [4] * 64, 2, 3),
    "dim64-mixed": (64, MIXED, 2, 4),
    "dim64-ranks-by-head": (64, RAGGED, 2, 2),
    "dim96-4bit": (96, [4] * 96, 1, 4),
    "dim128-2bit": (128, [2] * 128, 2, 8),
    "dim128-3bit": (128, [3] * 128, 1, 1),
    "dim128-8bit": (128, [8] * 64, 1, 16),
    "dim256-4bit": (256, [4] * 256, 1, 2),
}


def budget(query, pages, exact, scaling) -> float:
    """Twice what eager attention with keys, values and probabilities in half precision loses against float64."""
    outs = []
    for dtype in (torch.float64, torch.float32):
        rows = []
        for row in range(pages.batch):
            slots = coded_slots(pages, row)
            keys, values = (x[:, slots] for x in read_dense(sequence_pages(pages, row), pages.matrices, torch.float64))
            parts = (keys, values), exact_tokens(exact, row, dtype)
            if dtype == torch.float32:
                rows.append(eager_half(query[row].float(), parts, scaling))
            else:
                rows.append(attend(query[row].to(dtype), *parts, scaling))
        outs.append(torch.stack(rows))
    return 2 * relative_error(outs[1], outs[0]) + 2 * torch.finfo(query.dtype).eps


def eager_half(query, parts, scaling):
    keys, values = (torch.cat([p[i].half().float() for p in parts], dim=1) for i in range(2))
    p = (query.view(len(keys), -1, query.shape[-1]) @ keys.transpose(1, 2) * scaling).softmax(-1)
    return (p.half().float() @ values).view(query.shape)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_kernel_against_float64(name, dtype, backend):
    dim, bits, kv, group = SHAPES[name]
    matrices = matrices_for(kv, dim, bits)
    pages = pages_for(matrices, [300, 1, 63], first=3)
    exact = exact_for(matrices, 3, 4, [37, 1, 60], dtype)
    query = query_for(matrices, 3, group, dtype)
    want = reference.spectral_decode(query.double(), pages, exact, dim**-0.5, torch.float64)
    got = spectral_decode(query, pages, exact, backend=backend)
    assert got.dtype == dtype and got.shape == query.shape
    assert relative_error(got, want) <= budget(query, pages, exact, dim**-0.5)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("sinks,window,tokens", [(0, 1, 0), (4, 0, 130), (0, 0, 1), (1, 129, 256)])
def test_empty_and_single_parts(sinks, window, tokens, backend):
    matrices = matrices_for(2, 64, [4] * 64)
    pages = pages_for(matrices, [tokens])
    exact = exact_for(matrices, 1, sinks, window)
    query = query_for(matrices, 1, 2)
    want = reference.spectral_decode(query.double(), pages, exact, 0.125, torch.float64)
    assert relative_error(spectral_decode(query, pages, exact, backend=backend), want) < 2e-3


def test_no_token_at_all_gives_zeros():
    matrices = matrices_for(1, 64, [4] * 64)
    out = spectral_decode(
        query_for(matrices, 1, 2), pages_for(matrices, [0]), exact_for(matrices, 1, 0, 0), backend="triton"
    )
    assert torch.equal(out, torch.zeros_like(out))


def test_large_scores_do_not_overflow():
    matrices = matrices_for(1, 64, [4] * 64)
    pages, exact = pages_for(matrices, [200]), exact_for(matrices, 1, 4, 9)
    query = query_for(matrices, 1, 2) * 40
    want = reference.spectral_decode(query.double(), pages, exact, 0.125, torch.float64)
    assert relative_error(spectral_decode(query, pages, exact, backend="triton"), want) < 2e-2


def test_a_constant_of_keys_counts_against_exact_tokens():
    generator = torch.Generator().manual_seed(5)
    code = linear_code(64, [4] * 64, generator)
    shifted = RowMatrices.build([code], [code], device=DEVICE)
    pages, exact = pages_for(shifted, [100]), exact_for(shifted, 1, 4, 20)
    moved = RowMatrices.build(
        [type(code)(code.bits, code.encode, code.offset, code.decode, code.constant + 3.0)], [code], device=DEVICE
    )
    query = query_for(shifted, 1, 1)
    a = spectral_decode(query, pages, exact, backend="triton")
    b = spectral_decode(
        query, type(pages)(pages.storage, pages.pages, pages.first, pages.tokens, moved), exact, backend="triton"
    )
    assert relative_error(a, b) > 0.05


def test_fake_tensors_have_the_output_shape():
    matrices = matrices_for(2, 64, [4] * 64)
    pages, exact, query = pages_for(matrices, [200]), exact_for(matrices, 1, 4, 9), query_for(matrices, 1, 2)
    from sqkernels.spectral_decode.ops import decode

    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        fake = decode(torch.empty(query.shape, dtype=query.dtype, device=query.device), pages, exact, 0.125)
    assert fake.shape == query.shape and fake.dtype == query.dtype


def test_wrong_arguments_are_refused(monkeypatch):
    matrices = matrices_for(2, 64, [4] * 64)
    pages, exact, query = pages_for(matrices, [10]), exact_for(matrices, 1, 4, 9), query_for(matrices, 1, 2)
    with pytest.raises(ValueError, match="expected \\[1, a multiple of 2, 64\\]"):
        spectral_decode(query[:, :3], pages, exact)
    with pytest.raises(ValueError, match="at most 16"):
        spectral_decode(query.repeat(1, 9, 1), pages, exact)
    with pytest.raises(ValueError, match="not one of auto, triton, reference"):
        spectral_decode(query, pages, exact, backend="cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if DEVICE == "cpu":
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
            spectral_decode(query, pages, exact, backend="triton")


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_a_layer_of_pages_that_hold_several_is_padded_to_its_own_heads(backend):
    """Heads of other layers have wider bands, or bands of widths that this layer has none of."""
    narrow, wide, none = ([4] * 64, [4] * 64), ([8] * 64 + [2] * 0, [8] * 60 + [2] * 4), ([0] * 64, [4] * 30 + [2] * 3)
    matrices = matrices_for(6, 64, [narrow, narrow, wide, wide, none, none])
    pages = pages_for(matrices, [300])
    exact = exact_for(matrices, 1, 4, 40)
    planes = []
    for first in (0, 2, 4):
        part = matrices.part(first, 2)
        planes.append(part.layout.planes)
        own = ExactTokens(
            *(x[:, first : first + 2] for x in vars(exact).values() if x is not exact.tokens), exact.tokens
        )
        some = RowPages(pages.storage, pages.pages, pages.first, pages.tokens, part)
        query = query_for(part, 1, 3)
        want = reference.spectral_decode(query, some, own, 0.125, torch.float64)
        assert relative_error(spectral_decode(query, some, own, backend=backend), want) < 2e-3
        keys, values = read_dense(sequence_pages(some, 0), part)
        whole = read_dense(sequence_pages(pages, 0), matrices)
        assert torch.allclose(keys, whole[0][first : first + 2], atol=1e-5)
        assert torch.allclose(values, whole[1][first : first + 2], atol=1e-5)
    assert planes[0] == (64, 64) and planes[1] > planes[0] and planes[2][0] == planes[1][0]
