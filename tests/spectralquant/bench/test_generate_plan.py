"""The order of `sq profile --generate`: a run that is cut off has measured what is compared most."""

from spectralquant.bench.generate.plan import Cell, GenerateRequest, cells_of


def position(cells, kind, method, context, batch):
    return cells.index(Cell(kind, method, context, batch))


def test_every_cell_comes_once_and_the_summary_first():
    request = GenerateRequest()
    cells = list(cells_of(request, gpu=True))
    assert len(cells) == len(set(cells))
    decoded = {(c.method, c.context, c.batch) for c in cells if c.kind == "decode" and c.method != "warm"}
    methods = ("hot", "hot_select", "static_compiled", "dynamic")
    assert decoded == {(m, c, b) for m in methods for c in request.contexts for b in request.batches}
    summary = [c for c in cells if (c.context, c.batch) in ((32768, 1), (32768, 8)) and c.method != "dynamic"]
    needed = [c for c in summary if c.kind in ("decode", "whole_step") and c.method != "warm"]
    assert cells[: len(needed)] == needed
    order = [
        position(cells, "decode", "static_compiled", *pair) for pair in ((8192, 8), (131072, 1), (8192, 4), (8192, 16))
    ]
    assert order == sorted(order)
    assert position(cells, "capacity", "hot", 32768, 0) < position(cells, "decode", "warm", 8192, 1)


def test_without_a_gpu_nothing_is_called_compiled():
    cells = list(cells_of(GenerateRequest(contexts=(300,), batches=(1,), new=4), gpu=False))
    assert [c.method for c in cells if c.kind == "decode"] == ["hot", "hot_select", "dynamic"]
    assert {c.kind for c in cells} == {"decode", "first_token"}
