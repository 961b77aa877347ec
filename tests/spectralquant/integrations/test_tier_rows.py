"""Rows of vLLM's tier in CPU memory to chunks and back, against rows laid out element by element."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectralquant.errors import InputError
from spectralquant.integrations.vllm.pages import LAYOUTS, RowLayout, layout_named

RANKS, LAYERS, HEADS, DIM, BLOCK, PAGES = 2, 3, 4, 8, 16, 2


def row_of(keys: torch.Tensor, values: torch.Tensor, order: list[int], layout: str) -> torch.Tensor:
    """A row `[R][row of L][page][h, N, 2D or N, h, 2D]` of K and V `[L, Hk, T, D]`, one token at a time."""
    per_rank = HEADS // RANKS
    shape = (per_rank, BLOCK, 2 * DIM) if layout == "HND" else (BLOCK, per_rank, 2 * DIM)
    row = torch.zeros(RANKS, LAYERS, PAGES, *shape, dtype=keys.dtype)
    for layer, head, token in itertools.product(range(LAYERS), range(HEADS), range(PAGES * BLOCK)):
        place = (head % per_rank, token % BLOCK)
        if layout == "NHD":
            place = place[::-1]
        both = torch.cat([keys[layer, head, token], values[layer, head, token]])
        row[(head // per_rank, order[layer], token // BLOCK, *place)] = both
    return row.flatten().view(torch.int8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["HND", "NHD"])
def test_rows_are_read_and_written_as_vllm_lays_them_out(layout, dtype):
    draw = torch.Generator().manual_seed(0)
    sides = torch.randn(2, 2, LAYERS, HEADS, PAGES * BLOCK, DIM, generator=draw).to(dtype)
    order = [2, 0, 1]
    rows = torch.stack([row_of(keys, values, order, layout) for keys, values in sides])
    padded = torch.cat([rows, torch.full((2, 40), 7, dtype=torch.int8)], 1)
    rules = RowLayout(layout_named(layout), order, RANKS, HEADS, DIM, BLOCK, PAGES, dtype)
    assert rules.bytes == rows.shape[1]
    chunks = rules.read(padded, [0, 32])
    for chunk, start, (keys, values) in zip(chunks, (0, 32), sides, strict=True):
        assert chunk.start == start
        assert torch.equal(torch.stack(list(chunk.keys)), keys)
        assert torch.equal(torch.stack(list(chunk.values)), values)
    assert torch.equal(rules.write(chunks), rows)


def test_a_layout_that_mixes_layers_is_refused():
    assert set(LAYOUTS) == {"HND", "NHD", "LBHNC", "LBNHC"}
    with pytest.raises(InputError, match="BLHNC cannot be stored"):
        layout_named("BLHNC")
