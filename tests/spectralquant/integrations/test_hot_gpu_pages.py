"""Hot codes in pages as the GPU backend keeps them, prompts in pieces and single queries over them; no engine needed."""

from __future__ import annotations

import pytest
import torch
from conftest import profile_of
from torch.nn import functional

from spectralquant.geometry import BLOCK, SINKS
from spectralquant.integrations.vllm.hot import gpu_attend
from spectralquant.integrations.vllm.hot.gpu_attend import Piece, Pieces, attend_pieces, plain_dense
from spectralquant.integrations.vllm.hot.gpu_pages import HotPages, Sequences

HEADS = 4
SCALE = 0.3
LENGTHS = [2, 300, 129, 260]
DTYPE = torch.float16
BACKENDS = ["reference", "triton"]


class Step:
    """What an engine has: pages of one layer, block tables of some sequences, keys and values written so far."""

    def __init__(self, hot: HotPages, layer: int = 1) -> None:
        g, draw = hot.geometry, torch.Generator().manual_seed(3)
        self.hot, self.layer = hot, layer
        self.pages = torch.full((12, hot.page_bytes), 0x5A, dtype=torch.uint8)
        order = torch.randperm(12, generator=draw).tolist()
        self.table = torch.tensor([[order.pop() for _ in range(3)] for _ in LENGTHS], dtype=torch.int32)
        self.keys, self.values = (
            [torch.randn(n, g.kv_heads, g.head_dim, generator=draw).to(DTYPE) for n in LENGTHS] for _ in range(2)
        )

    def write(self, row: int, first: int, last: int) -> None:
        token = torch.arange(first, last)
        slots = self.table[row].long()[token // BLOCK] * BLOCK + token % BLOCK
        self.hot.write(self.layer, self.pages, slots, self.keys[row][first:last], self.values[row][first:last])

    def sequences(self, lengths: list[int]) -> Sequences:
        room = Sequences.empty(8, 4, torch.device("cpu"))
        return room.fill(self.table[: len(lengths)], torch.tensor(lengths, dtype=torch.int32), self.hot.page_bytes)

    def decoded(self, row: int, count: int) -> tuple[torch.Tensor, ...]:
        return self.hot.read(self.layer, self.pages, self.sequences(LENGTHS).rows(row, row + 1), 0, count, DTYPE)


def exactly(query, keys, values, before):
    mask = torch.ones(len(query), len(keys), dtype=torch.bool).tril_(before)
    q, k, v = (x.double().transpose(0, 1)[None] for x in (query, keys, values))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True)[0].transpose(
        0, 1
    )


def query_of(count, dim, seed=9):
    return torch.randn(count, HEADS, dim, generator=torch.Generator().manual_seed(seed)).to(DTYPE)


@pytest.fixture(params=BACKENDS)
def step(request) -> Step:
    profile = profile_of("llama")[1]
    return Step(HotPages(profile, "cpu", request.param))


def test_sinks_come_back_as_they_were_and_the_rest_nearly(step):
    step.write(1, 0, 200)
    step.write(1, 200, 300)
    keys, values = step.decoded(1, 300)
    for back, x in ((keys, step.keys[1]), (values, step.values[1])):
        assert torch.equal(back[:SINKS], x[:SINKS])
        assert not torch.equal(back[SINKS:], x[SINKS:])
    own = step.table[1].tolist()
    assert bool((step.pages[[i for i in range(12) if i not in own]] == 0x5A).all())


def test_one_query_a_sequence_over_uneven_lengths(step):
    for row, length in enumerate(LENGTHS):
        step.write(row, 0, max(1, length - 1))
        step.write(row, max(1, length - 1), length)
    query = query_of(len(LENGTHS), step.hot.geometry.head_dim)
    got = step.hot.decode(step.layer, step.pages, query, step.sequences(LENGTHS), SCALE)
    for row, length in enumerate(LENGTHS):
        want = exactly(query[row : row + 1], *step.decoded(row, length), length)[0]
        assert (got[row].double() - want).norm() < 5e-3 * want.norm()


def test_rows_that_only_fill_a_captured_batch_give_zeros(step):
    query = query_of(3, step.hot.geometry.head_dim)
    got = step.hot.decode(step.layer, step.pages, query, step.sequences([0, 0, 0]), SCALE)
    assert torch.equal(got, torch.zeros_like(got))


def test_pieces_are_exact_and_what_is_before_them_is_read_part_by_part(step, monkeypatch):
    """Several prompts in one step: none, a few or many tokens of them are in pages, the latter in several parts."""
    monkeypatch.setattr(gpu_attend, "PART", BLOCK)
    counts, befores = [2, 60, 1, 59], [0, 201, 128, 3]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    sequences = step.sequences(LENGTHS)
    each, new = [], []
    for row, (count, before) in enumerate(zip(counts, befores, strict=True)):
        step.write(row, 0, before + count)
        new.append([x[row][before : before + count] for x in (step.keys, step.values)])
        each.append(Piece(starts[row], starts[row + 1], before, sequences.rows(row, row + 1)))
    both = tuple(torch.cat(x) for x in zip(*new, strict=True))
    query = query_of(starts[-1], step.hot.geometry.head_dim)
    pieces = Pieces(each, torch.tensor(starts, dtype=torch.int32), max(counts))
    got = attend_pieces(step.hot, step.layer, step.pages, query, both, pieces, plain_dense(SCALE))
    for row, piece in enumerate(each):
        old = step.decoded(row, piece.before) if piece.before else [x[row][:0] for x in (step.keys, step.values)]
        keys, values = (torch.cat(x) for x in zip(old, new[row], strict=True))
        want = exactly(query[piece.first : piece.last], keys, values, piece.before)
        assert (got[piece.first : piece.last].double() - want).norm() < 2e-3 * want.norm(), row


def test_offsets_beyond_31_bits():
    room = Sequences.empty(2, 2, torch.device("cpu"))
    table = torch.tensor([[70_000, 3]], dtype=torch.int32)
    assert room.fill(table, torch.tensor([5], dtype=torch.int32), 147_456).offsets[0, 0] == 70_000 * 147_456
