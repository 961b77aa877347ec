"""Passes between caches and coefficients: both backends alike, there and back, nothing written beside."""

import pytest
import torch

from sqkernels.spectral_rows import (
    LayerTensors,
    TokenSlots,
    Turns,
    dequantize,
    gather_rows,
    quantize,
    row_energy,
    store_rows,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "triton")
HEADS, LAYERS, TOKENS, IDS = 3, 2, 50, 9
ROPE = {"halves": (16, 8, False), "neighbours": (16, 8, True), "partly": (24, 6, False), "none": (24, 0, False)}


def on(backend):
    return DEVICE if backend == "triton" else "cpu"


def row_case(dim, pairs, neighbours, device):
    generator = torch.Generator().manual_seed(0)
    width = LAYERS * HEADS * dim
    x = torch.randn(TOKENS, width, generator=generator).half()
    constant = torch.randn(width, generator=generator)
    predicted = torch.randn(2, IDS, width, generator=generator).half()
    rows = torch.randint(0, IDS, (2, TOKENS), generator=generator).int()
    angle = torch.rand(TOKENS, max(1, pairs), generator=generator)
    turns = None if not pairs else Turns(angle.cos().to(device), angle.sin().to(device), neighbours)
    return x.to(device), constant.to(device), predicted.to(device), rows.to(device), turns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rope", ROPE, ids=str)
def test_rows_are_stored_alike_and_come_back(rope, dtype):
    dim, pairs, neighbours = ROPE[rope]
    stored = {}
    for backend in BACKENDS:
        x, constant, predicted, rows, turns = row_case(dim, pairs, neighbours, on(backend))
        cache = LayerTensors(
            tuple(torch.full((2, HEADS, 60, dim), 7.0, dtype=dtype, device=on(backend)) for _ in range(3))
        )
        places = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:TOKENS].to(on(backend))
        slots = TokenSlots.dense(cache.tensors[0], torch.arange(TOKENS, device=on(backend)) % 2, places)
        store_rows(x, constant, predicted, rows, turns, cache, 1, slots, HEADS, factor=2.0, backend=backend)
        back = torch.empty_like(x)
        gather_rows(cache, 1, slots, HEADS, constant, predicted, rows, turns, back, backend=backend)
        assert torch.allclose(back.float(), 2 * x.float(), atol=0.02)
        assert (cache.tensors[0] == 7).all()
        stored[backend] = torch.stack([t.cpu().float() for t in cache.tensors])
    assert torch.allclose(stored["reference"], stored["triton"], atol=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pages_take_tokens_where_an_engine_maps_them(backend):
    x, constant, *_ = row_case(16, 8, False, on(backend))
    pages = tuple(torch.zeros(8, 16, HEADS, 16, device=on(backend)) for _ in range(LAYERS))
    numbers = torch.randperm(128, generator=torch.Generator().manual_seed(2))[:TOKENS].to(on(backend))
    slots = TokenSlots.paged(pages[0], numbers)
    store_rows(x, constant, None, None, None, LayerTensors(pages), 0, slots, HEADS, backend=backend)
    wanted = (x.float() + constant).view(TOKENS, LAYERS, HEADS, 16)
    for layer, page in enumerate(pages):
        assert torch.allclose(page.view(128, HEADS, 16)[numbers], wanted[:, layer], atol=1e-3)
        assert int((page.view(128, -1).abs().sum(1) > 0).sum()) == TOKENS


def symbol_case(device):
    generator = torch.Generator().manual_seed(0)
    rows, columns = 37, 300
    symbols = torch.randint(-4, 5, (rows, columns), generator=generator).to(torch.int8)
    classes = torch.randint(0, 10, (2, columns), generator=generator).to(torch.uint8)
    centroid, scale = torch.rand(2, rows, generator=generator) + 0.5
    positions = torch.randperm(rows * columns, generator=generator)[:50]
    positions[3] = -1
    escaped = torch.randint(-500, 500, (50,), generator=generator).int()
    return [t.to(device) for t in (symbols, classes, centroid, scale, positions, escaped)]


def test_symbols_become_the_same_coefficients():
    found = []
    for backend in BACKENDS:
        symbols, classes, centroid, scale, positions, escaped = symbol_case(on(backend))
        wide = torch.full((37, 400), 3.0, dtype=torch.float16, device=on(backend))
        dequantize(symbols, classes, 20, centroid, scale, positions, escaped, wide[:, 50:350], backend=backend)
        assert (wide[:, :50] == 3).all() and (wide[:, 350:] == 3).all()
        found.append(wide.cpu())
    assert torch.equal(found[0], found[1])
    symbols, classes, _, scale, *_ = symbol_case("cpu")
    unseen = (classes[0] == 9).nonzero()[0, 0]
    row = (symbols[:20, unseen].abs() > 1).nonzero()[0, 0]
    assert found[0][row, 50 + unseen] == (symbols[row, unseen] * scale[row]).half()


def test_coefficients_become_the_same_symbols():
    generator = torch.Generator().manual_seed(0)
    y = 50 * torch.randn(37, 300, generator=generator)
    y[3, 7], y[5, 8], y[6, 9] = float("nan"), 1e9, float("-inf")
    gain = torch.rand(37, generator=generator) + 0.1
    classes = torch.randint(0, 10, (2, 300), generator=generator).to(torch.uint8)
    first, second = (
        [t.cpu() for t in quantize(y.to(on(b)), gain.to(on(b)), classes.to(on(b)), 20, backend=b)] for b in BACKENDS
    )
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[1].nonzero().flatten().tolist() == [7, 8, 9]


@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_is_the_sum_of_squares(backend):
    y = torch.randn(1100, 70, generator=torch.Generator().manual_seed(0))
    gain = torch.rand(1100, generator=torch.Generator().manual_seed(1))
    found = row_energy(y.to(on(backend)), gain.to(on(backend)), backend=backend).cpu()
    assert torch.allclose(found, (y.double() * gain[:, None]).square().sum(0).float(), rtol=1e-5)


def test_tensors_that_do_not_fit_are_refused():
    x, constant, predicted, rows, turns = row_case(16, 8, False, "cpu")
    cache = LayerTensors(tuple(torch.zeros(1, HEADS, 60, 16) for _ in range(LAYERS)))
    slots = TokenSlots.dense(cache.tensors[0], torch.zeros(TOKENS, dtype=torch.int64), torch.arange(TOKENS))
    for wrong in (
        lambda: store_rows(x, constant[1:], predicted, rows, turns, cache, 0, slots, HEADS),
        lambda: store_rows(x, constant, predicted, None, turns, cache, 0, slots, HEADS),
        lambda: store_rows(x, constant, predicted, rows, turns, cache, 1, slots, HEADS),
        lambda: store_rows(x, constant, predicted, rows.long(), turns, cache, 0, slots, HEADS),
        lambda: LayerTensors((torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5))),
        lambda: TokenSlots.dense(torch.zeros(2, 3, 4), rows[0], rows[0]),
    ):
        with pytest.raises(ValueError):
            wrong()
