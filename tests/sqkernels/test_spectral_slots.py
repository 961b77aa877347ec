"""Tokens coded into slots of pages, and read back by the operators that read pages in place."""

import pytest
import torch
from codes_for_tests import DEVICE, matrices_for, query_for, relative_error

from sqkernels.common import ExactTokens, RowPages
from sqkernels.common.reference import round_trip
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_decode.reference import attend
from sqkernels.spectral_reconstruct import spectral_reconstruct
from sqkernels.spectral_slots import page_bytes, spectral_slots

EXACT = 4
SHAPES = {
    "dim64-4bit": (64, [4] * 64, 3),
    "dim64-ranks-by-head": (64, [([8, 8, *[4] * 30], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11])], 2),
    "dim128-even": (128, [8] * 20 + [4] * 88, 2),
    "dim96-mixed": (96, [6, 5] + [4] * 60 + [3, 2, 1], 1),
}


def tokens_for(matrices, count, dtype, seed=0):
    """Keys and values `[T, Hk, D]` as views of one projection's output, as engines hand them over."""
    kv, dim = matrices.kv_heads, matrices.head_dim
    x = torch.randn(count, 3 * kv * dim, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    return [x[:, i * kv * dim : (i + 1) * kv * dim].view(count, kv, dim) for i in (1, 2)]


def empty_pages(matrices, count):
    return torch.full((count, page_bytes(matrices, EXACT) + 32), 0xA5, dtype=torch.uint8, device=DEVICE)


def slots_for(lengths, blocks, seed=0):
    """Slots int64 of tokens of some sequences one after the other, and their tables: pages lie out of order."""
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    tables, slots = [], []
    for length in lengths:
        table = [order.pop() for _ in range(-(-length // 128))]
        tables.append(table)
        slots += [table[t // 128] * 128 + t % 128 for t in range(length)]
    return torch.tensor(slots, dtype=torch.int64, device=DEVICE), tables


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, 17, 200])
def test_kernel_writes_what_the_reference_writes(name, dtype, count):
    dim, bits, kv = SHAPES[name]
    matrices = matrices_for(kv, dim, bits)
    keys, values = tokens_for(matrices, count, dtype)
    slots, _ = slots_for([count], 4)
    slots[count // 2] = -1
    pages = [empty_pages(matrices, 4) for _ in range(2)]
    for backend, into in zip(("reference", "triton"), pages, strict=True):
        spectral_slots(keys, values, matrices, into, slots, EXACT, backend=backend)
    rows = matrices.layout.page_bytes
    assert torch.equal(pages[0][:, rows:], pages[1][:, rows:])  # the exact part, and nothing behind it
    wrong = (pages[0][:, :rows] != pages[1][:, :rows]).float().mean()
    assert wrong < 2e-3  # codes on the edge between two points


def test_tokens_without_a_slot_and_bytes_between_pages_stay():
    matrices = matrices_for(2, 64, [4] * 64)
    keys, values = tokens_for(matrices, 5, torch.float16)
    pages = empty_pages(matrices, 2)
    spectral_slots(keys, values, matrices, pages, torch.full((5,), -1, device=DEVICE), EXACT, backend="triton")
    assert bool((pages == 0xA5).all())


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_step_by_step_writing_reads_back_as_attention_over_the_decoded_tokens(backend):
    """Sequences of uneven lengths across page boundaries, prompts written at once and then token by token."""
    dim, kv, group, lengths = 64, 2, 3, [3, 128, 129, 261]
    matrices = matrices_for(kv, dim, [8] * 10 + [4] * 44)
    pages = empty_pages(matrices, 8)
    both = tokens_for(matrices, sum(lengths), torch.float16)
    slots, tables = slots_for(lengths, 8)
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    prompts = torch.cat([torch.arange(s, s + max(1, n - 2)) for s, n in zip(starts, lengths, strict=False)])
    later = torch.tensor([i for i in range(sum(lengths)) if i not in set(prompts.tolist())])
    for some in (prompts, *later.split(3)):
        spectral_slots(*(x[some] for x in both), matrices, pages, slots[some], EXACT, backend=backend)
    query = query_for(matrices, len(lengths), group)
    count = max(len(t) for t in tables)
    table = torch.tensor([t + [0] * (count - len(t)) for t in tables], device=DEVICE)
    first = matrices.layout.page_bytes
    exact = pages[table[:, 0], first : first + 4 * EXACT * kv * dim].contiguous().view(torch.float16)
    exact = exact.view(len(lengths), 2, kv, EXACT, dim)
    tokens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    none = exact[:, 0, :, :0]
    got = spectral_decode(
        query,
        RowPages(
            pages.view(-1),
            table * pages.stride(0),
            torch.full_like(tokens, EXACT),
            (tokens - EXACT).clamp(min=0),
            matrices,
        ),
        ExactTokens(none, none, exact[:, 0], exact[:, 1], tokens.clamp(max=EXACT)),
        backend=backend,
    )
    for row, length in enumerate(lengths):
        keys, values = (x[starts[row] : starts[row] + length].double().transpose(0, 1) for x in both)
        coded = [round_trip(x, matrices, i)[:, EXACT:] for i, x in enumerate((keys, values))]
        early = keys[:, :EXACT], values[:, :EXACT]
        want = attend(query[row].double(), tuple(coded), early, dim**-0.5)
        assert relative_error(got[row], want) < 4e-3, length


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_pages_of_an_engine_are_reconstructed(backend):
    matrices = matrices_for(2, 64, [4] * 64)
    pages = empty_pages(matrices, 4)
    both = tokens_for(matrices, 200, torch.float16)
    slots, tables = slots_for([200], 4)
    spectral_slots(*both, matrices, pages, slots, EXACT, backend=backend)
    offsets = torch.tensor(tables, device=DEVICE) * pages.stride(0)
    got = spectral_reconstruct(pages.view(-1), offsets, matrices, torch.float32, backend=backend)
    for kind, x in enumerate(both):
        want = round_trip(x.double().transpose(0, 1), matrices, kind)
        assert relative_error(got[kind][0, :, :200], want) < 2e-2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keys": torch.zeros(3, 2, 64)}, "both float16"),
        ({"slots": torch.zeros(2, dtype=torch.int64)}, "slots must be int64"),
        ({"pages": torch.zeros(2, 1024, dtype=torch.uint8)}, "shorter than"),
        ({"pages": torch.zeros(2, 9 * 1024 + 3, dtype=torch.uint8)}, "16 bytes apart"),
        ({"values": torch.zeros(3, 64, 2, dtype=torch.float16).transpose(1, 2)}, "adjacent"),
        ({"exact": 200}, "cannot be exact"),
    ],
)
def test_wrong_arguments_are_refused(change, reason):
    matrices = matrices_for(2, 64, [4] * 64, device="cpu")
    good = {
        "keys": torch.zeros(3, 2, 64, dtype=torch.float16),
        "values": torch.zeros(3, 2, 64, dtype=torch.float16),
        "matrices": matrices,
        "pages": torch.zeros(2, page_bytes(matrices, EXACT), dtype=torch.uint8),
        "slots": torch.zeros(3, dtype=torch.int64),
        "exact": EXACT,
    }
    with pytest.raises(ValueError, match=reason):
        spectral_slots(**(good | change))
