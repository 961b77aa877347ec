"""The whole flow of `sq profile` on the CPU: kernels in the interpreter, a host clock in place of CUDA graphs."""

import time

import pytest
import torch

from spectralquant.bench import cell, compression, end_to_end, run
from spectralquant.bench.cell import fastest
from spectralquant.bench.device.peaks import Peaks
from spectralquant.bench.device.timing import Timing
from spectralquant.bench.inputs import CodeSettings
from spectralquant.bench.run import BenchRequest, bench_device
from spectralquant.errors import InputError
from spectralquant.models.shapes import parse_shape
from spectralquant.results.speed import KernelRow
from spectralquant.results.unfinished import UnfinishedRun, advice
from sqkernels.dense_decode import dense_decode

SHAPE = parse_shape("custom:layers=2,heads=4,kv_heads=2,head_dim=32,hidden=64,intermediate=128,vocab=97")


def host_clock(calls):
    begin = time.perf_counter()
    for call in calls:
        call()
    mean = 1e6 * (time.perf_counter() - begin) / len(calls)
    return Timing(mean, mean, mean, 1)


@pytest.fixture
def on_the_cpu(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a GPU")
    device = torch.device("cpu")
    monkeypatch.setattr(cell, "graph_time", host_clock)
    monkeypatch.setattr(compression, "graph_time", host_clock)
    monkeypatch.setattr(run, "measure_peaks", lambda d: Peaks(0.02, 0.1, 1, 2, 0.03, 0.025))
    monkeypatch.setattr(run, "dense_baselines", lambda: {"ours": dense_decode, "broken": lambda *a: 1 / 0})
    monkeypatch.setattr(run, "device_facts", lambda d: {"device": "cpu"})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: type("P", (), {"total_memory": 10**9}))

    def step(action, tokens):
        tokens.copy_(action()[0])
        return 2.0, 1.0, 3.0

    monkeypatch.setattr(end_to_end, "_replayed", step)
    return device


@pytest.mark.slow
def test_every_row_is_checked_and_compared(on_the_cpu):
    saved = []
    request = BenchRequest(
        SHAPE, CodeSettings(share=0.25), contexts=(300, 430), batches=(1, 2), end_to_end=True, flex=False
    )
    result = bench_device(request, on_the_cpu, save=lambda r: saved.append(r["complete"]))
    assert saved == [False] * 5 + [True]
    rows = result["rows"]
    assert {r["kernel"] for r in rows if "failed" not in r} == {"ours", *run.KERNELS}
    assert {r["kernel"]: r["failed"] for r in rows if "failed" in r} == {"broken": "division by zero"}
    for r in (r for r in rows if "failed" not in r):
        assert r["correct"], r
        assert r["time_us"] > 0 and r["bytes_read"] > 0
        if r["kernel"].endswith("decode") and r["kernel"] != "ours":
            assert r["baseline"] == "ours" and r["speedup"] == pytest.approx(r["baseline_time_us"] / r["time_us"])
            assert r["peak_share"] == pytest.approx(r["tb_per_s"] / 0.03), "of reads, which are faster than a copy"
    assert {(r["batch"], r["method"]) for r in result["end_to_end"]} == {
        (1, m) for m in ("ours", "spectral_decode", "spectral_index_decode")
    }
    assert all("failed" not in r for r in result["end_to_end"])
    assert {r["kernel"] for r in result["crossover"]} == {"spectral_decode", "spectral_index_decode"}


def test_an_interrupted_run_goes_on_with_the_next_cell(on_the_cpu, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))
    request = BenchRequest(SHAPE, contexts=(300, 700), batches=(1,), kernels=("spectral_decode",), flex=False)

    def interrupt(stage, done, total):
        if stage == "context 700, batch 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), UnfinishedRun("profile", {}) as kept:
        bench_device(request, on_the_cpu, interrupt, kept=kept)
    assert "2 finished parts are kept" in advice(), "the peaks, and the first context"

    measured, dense_rows = [], run.dense_rows
    monkeypatch.setattr(run, "dense_rows", lambda bench, *cell: measured.append(cell[:2]) or dense_rows(bench, *cell))
    with UnfinishedRun("profile", {}, resume=True) as kept:
        result = bench_device(request, on_the_cpu, kept=kept)
    assert measured == [(1, 700)]
    assert [(r.kernel, r.context) for r in result.rows if r.kernel == "spectral_decode"] == [
        ("spectral_decode", 300),
        ("spectral_decode", 700),
    ]
    assert result.complete and result.provenance["resumed_parts"] == 2


def test_a_wrong_kernel_gets_no_speedup(on_the_cpu, monkeypatch):
    right = cell.spectral_decode
    monkeypatch.setattr(cell, "spectral_decode", lambda *a, **k: right(*a, **k) * 1.5)
    from spectralquant.bench import checks

    monkeypatch.setattr(checks, "spectral_decode", lambda *a, **k: right(*a, **k) * 1.5)
    request = BenchRequest(SHAPE, contexts=(300,), batches=(1,), kernels=("spectral_decode",))
    row = next(r for r in bench_device(request, on_the_cpu)["rows"] if r["kernel"] == "spectral_decode")
    assert not row["correct"] and row["speedup"] is None and row["error"] > 0.1


def test_the_fastest_baseline_must_be_right():
    common = {"kernel": "k", "batch": 1, "context": 2048}
    figures = ({"time_us": 1.0, "correct": False}, {"time_us": 3.0, "correct": True}, {"failed": "x"})
    rows = [KernelRow(**common, **each) for each in figures]
    assert fastest(rows).time_us == 3.0
    assert fastest(rows[:1]) is None


@pytest.mark.parametrize(
    "change,message",
    [
        ({"contexts": (64,)}, "at least 264"),
        ({"batches": (0,)}, "positive numbers"),
        ({"kernels": ("spectral_decod",)}, "Did you mean 'spectral_decode'"),
        ({"settings": CodeSettings(bits=7)}, "not one of 2, 3, 4, 8"),
        ({"settings": CodeSettings(share=1.5)}, "between 0 and 1"),
        ({"settings": CodeSettings(index_rank=24)}, "multiple of 16"),
        ({"shape": parse_shape("custom:layers=1,heads=2,kv_heads=2,head_dim=80")}, "head dimensions"),
    ],
)
def test_wrong_requests_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        BenchRequest(**{"shape": SHAPE, "contexts": (300,), **change}).check()
