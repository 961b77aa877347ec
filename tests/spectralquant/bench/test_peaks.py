"""Ceilings and the bytes that are held against them: what really moves, and no share above what the memory can do."""

import pytest
import torch

from spectralquant.bench import cell
from spectralquant.bench.baselines import dense_baselines
from spectralquant.bench.cell import Bench, dense_bytes, dense_rows
from spectralquant.bench.device import peaks
from spectralquant.bench.device.peaks import Peaks, measure_peaks
from spectralquant.bench.device.timing import Timing
from spectralquant.bench.inputs import CodeSettings, random_matrices
from spectralquant.bench.prediction import Roof
from spectralquant.models.shapes import parse_shape
from sqcli.terminal.speed import peak_name, peaks_text

SHAPE = parse_shape("custom:layers=2,heads=8,kv_heads=2,head_dim=32,hidden=64,intermediate=128,vocab=97")
MEASURED = Peaks(2.42e-6, 780.0, 10**6, 132, 3.1e-6, 2.9e-6)
"""As an H100's, a million times smaller: a copy is slower than reads."""


@pytest.fixture
def small_device(monkeypatch):
    monkeypatch.setattr(peaks, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(peaks, "MATRIX", 32)
    monkeypatch.setattr(peaks, "WARM_S", 0.0)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda d: type("P", (), {"L2_cache_size": 10**6, "multi_processor_count": 4}),
    )
    return torch.device("cpu")


def test_a_copy_counts_twice_and_reads_and_writes_once(small_device, monkeypatch):
    """Every call takes a second, so that rates are bytes."""

    def second(calls, replays):
        for call in calls:
            call()
        return Timing(1e6, 1e6, 1e6, replays)

    monkeypatch.setattr(peaks, "graph_time", second)
    rates = measure_peaks(small_device)
    assert rates.copy_tb_per_s * 1e12 == pytest.approx(2 << 20)
    assert rates.read_tb_per_s * 1e12 == rates.write_tb_per_s * 1e12 == pytest.approx(1 << 20)
    assert rates.memory_tb_per_s == rates.copy_tb_per_s
    assert MEASURED.memory_tb_per_s == Roof.measured(MEASURED).tb_per_s == MEASURED.read_tb_per_s


def test_reads_read_every_byte(small_device):
    """A changed byte anywhere changes what every read gives."""
    data = torch.zeros(1 << 18, dtype=torch.uint8)
    for place in (0, 5000, 100_000, (1 << 18) - 1):
        changed = data.clone()
        changed[place | 2] = 64
        before, after = ([call() for call in peaks.reads(x)] for x in (data, changed))
        assert all(bool((a != b).any()) for a, b in zip(before, after, strict=True))
        assert max(b.nbytes for b in before) <= len(data) / 1000 + 4


@pytest.mark.parametrize(("batch", "context"), [(1, 512), (3, 700)])
def test_bytes_of_every_baseline_are_those_of_its_keys_and_values(batch, context, monkeypatch):
    """Query heads share keys: whatever a baseline makes of them, the input is read once and is what counts."""
    seen: dict[int, int] = {}
    baselines = {name: run for name, run in dense_baselines(flex=False).items() if name.startswith("sdpa")}

    def recorded(run):
        def call(query, keys, values):
            seen[id(run)] = sum(x.untyped_storage().nbytes() for x in (keys, values))
            return run(query, keys, values)

        return call

    monkeypatch.setattr(cell, "graph_time", lambda calls: [call() for call in calls] and Timing(100.0, 99, 101, 3))
    matrices = random_matrices(SHAPE, CodeSettings(), torch.device("cpu"))
    bench = Bench(SHAPE, matrices, CodeSettings(), MEASURED, "cpu")
    rows = dense_rows(bench, batch, context, {name: recorded(run) for name, run in baselines.items()})
    timed = [row for row in rows if row.failed is None]
    assert len(rows) == 6 and len(timed) >= 1
    for row in timed:
        assert row.bytes_read == dense_bytes(SHAPE, batch, context)
        assert row.peak_share == pytest.approx(row.tb_per_s / MEASURED.read_tb_per_s)
        assert row.ideal_us == pytest.approx(100.0 * row.peak_share)
    assert set(seen.values()) == {dense_bytes(SHAPE, batch, context)}


def test_dense_inputs_do_not_fit_into_the_cache_together(monkeypatch):
    """Four of 8 MB did fit into 50 MB: short contexts were read from the cache, and looked faster than they are."""
    places = set()

    def distinct(query, keys, values):
        places.update((x.data_ptr(), x.nbytes) for x in (keys, values))
        return torch.zeros_like(query)

    monkeypatch.setattr(cell, "graph_time", lambda calls: [call() for call in calls] and Timing(100.0, 99, 101, 3))
    matrices = random_matrices(SHAPE, CodeSettings(), torch.device("cpu"))
    bench = Bench(SHAPE, matrices, CodeSettings(), MEASURED, "cpu")
    dense_rows(bench, 1, 512, {"probe": distinct})
    assert sum(nbytes for _, nbytes in places) >= 3 * MEASURED.cache


def test_what_a_share_is_of_is_said():
    assert peak_name({"peaks": {"copy_tb_per_s": 2.4, "matmul_tflops": 1.0}}) == "copy", "files of earlier versions"
    rates = {"copy_tb_per_s": 2.4, "read_tb_per_s": 3.1, "write_tb_per_s": 2.9, "matmul_tflops": 1.0}
    assert peak_name({"peaks": rates}) == "peak"
    assert peaks_text(rates) == "measured peaks: copy 2.40, read 3.10, write 2.90 TB/s, matmul 1 TFLOP/s"
