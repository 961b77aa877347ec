"""The gpu suite's flow on the CPU: kernels in the interpreter, a host clock, a small shape."""

import time

import pytest
import torch

from spectralquant.bench import cell
from spectralquant.bench.device.peaks import Peaks
from spectralquant.bench.device.timing import Timing
from spectralquant.errors import InputError
from spectralquant.gate.limits import Limits
from spectralquant.gate.run import judge
from spectralquant.gate.suites import gpu
from sqkernels.dense_decode import dense_decode


@pytest.fixture
def small(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted where there is a GPU")

    def clock(calls, replays=1):
        begin = time.perf_counter()
        for call in calls:
            call()
        return Timing(1e6 * (time.perf_counter() - begin) / len(calls), 0.0, 0.0, 1)

    for module in (gpu, cell):
        monkeypatch.setattr(module, "graph_time", clock)
    monkeypatch.setattr(gpu, "measure_peaks", lambda device: Peaks(0.02, 0.1, 1, 2, 0.03, 0.025))
    monkeypatch.setattr(gpu, "dense_baselines", lambda flex: {"ours": dense_decode})
    monkeypatch.setattr(gpu, "device_facts", lambda device: {"device": "a GPU", "driver": "1", "cuda": "1"})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(gpu, "SHAPE", "custom:layers=1,heads=2,kv_heads=1,head_dim=32")
    monkeypatch.setattr(gpu, "CONTEXT", 300)
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    monkeypatch.setattr(gpu, "ROUNDS", 7)

    class Pretended:
        type, index = "cuda", 0

    monkeypatch.setattr(gpu, "random_matrices", lambda s, c, device: cell_matrices(s, c))
    return Pretended()


def cell_matrices(shape, settings):
    from spectralquant.bench.inputs import random_matrices

    return random_matrices(shape, settings, "cpu")


@pytest.mark.slow
def test_every_kernel_has_its_metrics_and_a_wrong_one_is_found(small, monkeypatch):
    result = gpu.gpu_suite(small)
    names = [r["metric"] for r in result["rows"]]
    assert len(names) == 12 and names[0] == "gpu/spectral_decode/context=300,batch=1/correct"
    assert all(r["value"] == 1.0 for r in result["rows"] if r["metric"].endswith("correct"))
    assert all(len(r["samples"]) == 7 for r in result["rows"] if r["metric"].endswith("time_over_dense"))
    monkeypatch.setattr(gpu, "check_kernel", lambda *a: (1.0, 0.1))
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    broken = gpu.gpu_suite(small)
    wrong = {v.metric for v in judge(result, broken, Limits()).verdicts if v.verdict == "regression"}
    assert {n for n in names if n.endswith("correct")} <= wrong


def test_it_needs_a_gpu():
    with pytest.raises(InputError, match="Use --run smoke"):
        gpu.gpu_suite(torch.device("cpu"))
