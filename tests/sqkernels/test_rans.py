"""The range coder: round trips, the same bytes from both backends, rounding of tables, damaged streams."""

import numpy as np
import pytest
import torch

from sqkernels.entropy import BlockShape, Contexts, RansTables, StreamTable, decode, encode, escape_positions, native
from sqkernels.entropy.compiled import NotCompiledError
from sqkernels.entropy.tables import TOTAL

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NATIVE = pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no C compiler"))
BACKENDS = ("reference", "triton", NATIVE)
SHAPES = {
    "one-lane-a-token": [(128, 128, 1)],
    "two-runs": [(24, 24, 2), (32, 32, 2)],
    "over-one-stream": [(200, 200, 1)],
    "lanes-of-several-tokens": [(50, 7, 1), (128, 64, 1)],
    "mixed": [(1, 1, 1), (5, 2, 3), (40, 40, 1), (9, 9, 6)],
}


def laplace_tables(count=12, alphabet=32):
    scale = torch.logspace(-1.5, 0.9, count, dtype=torch.float64)
    value = torch.arange(alphabet - 1) - (alphabet - 2) // 2
    rows = torch.exp(-value.abs() / scale[:, None])
    rows = torch.cat([rows, rows[:, :1] / 2 + 1e-7], dim=1)
    return RansTables.of((rows / rows.sum(1, keepdim=True)).float())


def draw(shapes, rows, seed, shifted=False, tables=None):
    """A stream table, contexts, tables and symbols drawn from them, a few of them far outside."""
    rng = np.random.default_rng(seed)
    tables = tables or laplace_tables()
    table = StreamTable.of([BlockShape(*s) for s in shapes], rows)
    choice = torch.zeros(rows, 16, dtype=torch.uint8)
    choice[:, :9] = torch.from_numpy(rng.integers(0, tables.count, (rows, 9)).astype(np.uint8))
    classes = torch.from_numpy(rng.integers(0, 9, (2, table.columns)).astype(np.uint8))
    split = int(rng.integers(0, rows + 1))
    group = shifts = None
    if shifted:
        group = torch.arange(rows, dtype=torch.int32) // 3
        shifts = torch.from_numpy(rng.integers(-20, 20, (len(shapes), -(-rows // 3))).astype(np.int16))
    contexts = Contexts(choice, classes, split, shifts, group)
    kind = (torch.arange(rows) >= split).long()
    used = choice.gather(1, classes[kind].long())
    slot = torch.from_numpy(rng.integers(0, TOTAL, used.shape))
    symbols = tables.symbol_of_slot[used.long(), slot] - tables.span
    far = torch.from_numpy(rng.integers(-(2**30), 2**30, used.shape))
    symbols = torch.where(
        (symbols > tables.span) | torch.from_numpy(rng.random(used.shape) < 0.002), far, symbols
    ).int()
    initial = torch.from_numpy(rng.integers(0, 1 << 16, table.lanes).astype(np.uint16))
    return table, contexts, tables, symbols, initial


def moved(contexts, device):
    parts = (contexts.choice, contexts.classes, contexts.shifts, contexts.group)
    choice, classes, shifts, group = (None if t is None else t.to(device) for t in parts)
    return Contexts(choice, classes, contexts.split, shifts, group)


def coded(case, backend):
    table, contexts, tables, symbols, initial = case
    device = DEVICE if backend == "triton" else "cpu"
    contexts, symbols = moved(contexts, device), symbols.to(device)
    positions, counts = escape_positions(symbols, table, contexts, tables, backend=backend)
    result = encode(symbols, initial.to(device), table, contexts, tables, backend=backend)
    parts = (result.words, result.counts, result.states, counts, positions)
    return tuple(t.cpu() for t in parts)


def decoded(parts, case, backend, dtype=torch.int32):
    table, contexts, tables, _, _ = case
    device = DEVICE if backend == "triton" else "cpu"
    words, counts, states, escapes = parts[:4]
    contexts = moved(contexts, device)
    result = decode(
        words.to(device), counts, states.to(device), escapes, table, contexts, tables, dtype=dtype, backend=backend
    )
    return tuple(t.cpu() for t in (result.symbols, result.positions, result.finals, result.status))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shifted", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("name", SHAPES)
def test_round_trip_and_the_same_bytes_from_all_backends(name, shifted, backend):
    case = draw(SHAPES[name], 7, len(name), shifted)
    _, _, _, symbols, initial = case
    first = coded(case, "reference")
    for ours, theirs in zip(first, coded(case, backend), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours.long(), theirs.long())
    back, positions, finals, status = decoded(first, case, backend)
    assert not status.any() and torch.equal(finals.int(), initial.int())
    assert torch.equal(positions, first[4])
    back.view(-1)[positions] = symbols.view(-1)[positions]
    assert torch.equal(back, symbols)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_narrow_symbols(dtype, backend):
    case = draw(SHAPES["two-runs"], 5, 3)
    parts = coded(case, "reference")
    back = decoded(parts, case, backend, dtype)[0]
    back.view(-1)[parts[4]] = case[3].view(-1)[parts[4]].to(dtype)
    assert back.dtype == dtype and torch.equal(back, case[3].to(dtype))


@pytest.mark.parametrize("backend", ["reference", NATIVE])
@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_round_trip_on_the_cpu(seed, backend):
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 60))
    shapes = []
    for _ in range(rng.integers(1, 6)):
        tokens = int(rng.integers(1, 300))
        shapes.append((tokens, int(rng.integers(1, tokens + 1)), int(rng.integers(1, rows + 1))))
    case = draw(shapes, rows, seed, bool(seed % 2))
    parts = coded(case, backend)
    assert all(torch.equal(a.long(), b.long()) for a, b in zip(parts, coded(case, "reference"), strict=True))
    back, positions, finals, status = decoded(parts, case, backend)
    back.view(-1)[positions] = case[3].view(-1)[positions]
    assert not status.any() and torch.equal(back, case[3]) and torch.equal(finals.int(), case[4].int())


@pytest.mark.skipif(not native.available(), reason="no C compiler")
def test_threads_share_streams_and_blocks_full_of_escapes_are_taken(monkeypatch):
    case = draw([(200, 200, 1)] * 7, 64, 11)
    table, contexts, tables, symbols, initial = case
    monkeypatch.setattr(native, "LEAST_SYMBOLS", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    for values in (symbols, torch.full_like(symbols, 1000)):
        case = (table, contexts, tables, values, initial)
        first, second = coded(case, "reference"), coded(case, "native")
        assert all(torch.equal(a.long(), b.long()) for a, b in zip(first, second, strict=True))
        back, positions, finals, status = decoded(second, case, "native")
        back.view(-1)[positions] = values.view(-1)[positions]
        assert not status.any() and torch.equal(back, values) and torch.equal(finals.int(), initial.int())


def test_auto_goes_on_without_a_compiler_and_native_says_why_not(monkeypatch):
    case = draw([(40, 40, 1)], 12, 9)
    expected = coded(case, "reference")
    monkeypatch.setattr(native, "library", lambda source: NotCompiledError("no C compiler"))
    assert all(torch.equal(a.long(), b.long()) for a, b in zip(coded(case, "auto"), expected, strict=True))
    with pytest.raises(RuntimeError, match="no C compiler"):
        coded(case, "native")


def test_bytes_are_what_the_tables_say():
    case = draw([(128, 128, 1)] * 4, 300, 5)
    table, contexts, tables, symbols, _ = case
    words, _, states, _, _ = coded(case, "reference")
    kind = (torch.arange(len(symbols)) >= contexts.split).long()
    used = contexts.choice.gather(1, contexts.classes[kind].long()).long()
    place = torch.where(symbols.abs() > tables.span, tables.alphabet - 1, symbols + tables.span).long()
    frequency = tables.frequency[used, place]
    frequency = torch.where(frequency > 0, frequency, tables.frequency[used, -1])
    ideal = float(-(frequency.double() / TOTAL).log2().sum())
    spent = 16 * len(words) + float(states.double().log2().sum()) - 16 * table.lanes
    assert spent == pytest.approx(ideal, rel=2e-3)


def test_rounding_follows_the_rule():
    p = torch.tensor([[0.5, 0.25, 0.25 - 2**-20, 2**-20], [0.0, 0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3, 0.0]])
    assert RansTables.of(p).frequency.tolist() == [[511, 256, 256, 1], [0, 0, 0, TOTAL], [341, 341, 341, 1]]
    random = torch.rand(50, 32, generator=torch.Generator().manual_seed(1)) ** 8
    tables = RansTables.of(random / random.sum(1, keepdim=True))
    assert torch.equal(tables.frequency.sum(1), torch.full((50,), TOTAL).int())
    share = random.double() / random.double().sum(1, keepdim=True)
    assert ((tables.frequency / TOTAL - share).abs().max(1).values <= 20 / TOTAL).all()
    expected = -(tables.frequency / TOTAL * (tables.frequency.clamp_min(1) / TOTAL).log2()).sum(1)
    assert torch.allclose(tables.entropy / TOTAL / 16, expected, atol=0.07)


def test_impossible_tables_are_refused():
    for bad in ([[0.5, float("nan")]], [[0.0, 0.0]], [[-0.1, 1.1]]):
        with pytest.raises(ValueError):
            RansTables.of(torch.tensor(bad))
    with pytest.raises(ValueError, match="float32"):
        RansTables.of(torch.ones(1, 2).double())
    with pytest.raises(ValueError, match="sum to"):
        RansTables(torch.tensor([[5, 5]], dtype=torch.int32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["flipped", "short", "long", "states", "escapes"])
def test_damage_is_noticed(what, backend):
    case = draw([(40, 40, 1)], 12, 9)
    words, counts, states, escapes, _ = coded(case, "reference")
    rng = np.random.default_rng(2)
    noticed = 0
    for trial in range(6):
        w, c, x, e = words.clone(), counts.clone(), states.clone(), escapes.clone()
        if what == "flipped":
            at = int(rng.integers(len(w)))
            w[at] = int(w[at]) ^ (1 << int(rng.integers(16)))
        elif what == "short":
            w, c = w[: -1 - trial], c - 1 - trial
        elif what == "long":
            w, c = torch.cat([w, w[: trial + 1]]), c + trial + 1
        elif what == "states":
            x[trial] = int(rng.integers(1 << 32))
        else:
            e = e + 1 + trial
        symbols, at, finals, status = decoded((w, c, x, e), case, backend)
        assert symbols.shape == case[3].shape and (at < symbols.numel()).all() and len(at) == int(e.sum())
        noticed += bool(status.any()) or not torch.equal(finals.int(), case[4].int())
    assert noticed == 6


def test_wrong_arguments_are_refused():
    case = draw([(8, 8, 1)], 4, 1)
    table, contexts, tables, symbols, initial = case
    with pytest.raises(ValueError, match="int32"):
        encode(symbols.long(), initial, table, contexts, tables)
    with pytest.raises(ValueError, match="initial"):
        encode(symbols, initial[:-1], table, contexts, tables)
    wrong = Contexts(contexts.choice, contexts.classes + 16, contexts.split)
    with pytest.raises(ValueError, match="class"):
        encode(symbols, initial, table, wrong, tables)
    words, counts, states, escapes, _ = coded(case, "reference")
    with pytest.raises(ValueError, match="as many as counts say"):
        decode(words, counts + 1, states, escapes, table, contexts, tables)
    with pytest.raises(ValueError, match="more escapes"):
        decode(words, counts, states, escapes + 1000, table, contexts, tables)
    with pytest.raises(ValueError, match="lanes"):
        StreamTable.of([BlockShape(4, 5, 1)], 4)
