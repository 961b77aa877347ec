"""Predictions, memory, crossovers and shapes: arithmetic that must be right without a GPU."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoConfig

from spectralquant.bench.crossover import crossovers
from spectralquant.bench.device.devices import DEVICES, device_named, parse_device
from spectralquant.bench.device.telemetry import verdict
from spectralquant.bench.device.timing import rotation
from spectralquant.bench.fit import medians, shipped_fit
from spectralquant.bench.inputs import CodeSettings, random_matrices
from spectralquant.bench.memory import memory_rows
from spectralquant.bench.prediction import Roof, predicted_beside
from spectralquant.bench.run import BenchRequest, predict_device
from spectralquant.errors import InputError
from spectralquant.models.config import shape_of_model
from spectralquant.models.shapes import parse_shape
from spectralquant.results.files import read_results
from spectralquant.results.speed import KernelRow
from sqcli.terminal.speed import speed_view


def test_predictions_are_marked_and_time_nothing():
    request = BenchRequest(parse_shape("llama-3.1-8b"), contexts=(32768,), batches=(1, 8))
    result = predict_device(request, parse_device("h100"))
    assert {r["kernel"] for r in result["rows"]} == {"dense bf16", "spectral_decode", "spectral_index_decode"}
    for row in result["rows"]:
        assert row["predicted"] and "time_us" not in row and row["predicted_us"] > 0
    dense = next(r for r in result["rows"] if r["kernel"] == "dense bf16" and r["batch"] == 8)
    # 8 sequences x 8 heads x 32768 tokens x 128 x 2 x 2 bytes at 90 % of 3.35 TB/s
    assert dense["roofline_us"] == pytest.approx(2**30 / 3.015e6, rel=1e-3)
    assert all(r["predicted_us"] > r["roofline_us"] for r in result["rows"] if r["kernel"] != "dense bf16")
    index = next(r for r in result["rows"] if r["kernel"] == "spectral_index_decode" and r["batch"] == 8)
    assert 0.03 < index["bytes_share_of_dense"] < 0.065
    assert result["telemetry"] is None and result["provenance"]["device"] is None


def test_the_slower_of_bytes_and_flops_decides():
    roof = Roof(tb_per_s=1.0, tflops=100.0, source="test", processors=1)
    assert roof.time_us(1e9, 0) == pytest.approx(1000) and roof.time_us(0, 1e11) == pytest.approx(1000)


def test_memory_counts_codes_window_and_weights():
    shape = parse_shape("custom:layers=2,heads=4,kv_heads=2,head_dim=64")
    settings = CodeSettings()
    matrices = random_matrices(shape, settings, "cpu")
    rows = {r["method"]: r for r in memory_rows(shape, matrices, settings, 1, 10_000, 10**10)}
    assert rows["bf16"]["bytes"] == 10_000 * shape.kv_bytes_per_token
    assert rows["fp8"]["bytes"] * 2 == rows["bf16"]["bytes"]
    hot, index = rows["hot 4 bits"], rows["hot 4 bits + index"]
    codes = (10_000 - 132) * shape.kv_bytes_per_token / 4
    assert codes < hot["bytes"] < codes + 260 * shape.kv_bytes_per_token + 10**6
    assert index["bytes"] > hot["bytes"] and hot["longest_context"] > 3 * rows["bf16"]["longest_context"]


def test_memory_of_sliding_layers_is_their_window():
    shape = replace(parse_shape("custom:layers=3,heads=4,kv_heads=2,head_dim=64"), windows=(1000, 100, None))
    settings = CodeSettings()
    matrices = random_matrices(shape, settings, "cpu")
    rows = {r["method"]: r for r in memory_rows(shape, matrices, settings, 1, 10_000, 10**10)}
    layer = shape.kv_bytes_per_token // 3
    assert rows["bf16"]["bytes"] == (10_000 + 999 + 99) * layer and rows["bf16"]["ratio"] == 1
    hot = rows["hot 4 bits"]["bytes"]
    assert (9868 + 872) * layer / 4 + 99 * layer < hot < (9868 + 1100) * layer / 4 + (99 + 2 * 260) * layer + 10**6
    sliding = replace(shape, windows=(1000, 100, 100))
    assert memory_rows(sliding, matrices, settings, 1, 10_000, 10**10)[0]["longest_context"] is None


def test_windows_of_a_shape_are_those_of_its_cache(tmp_path):
    AutoConfig.for_model("mistral", sliding_window=4096, num_hidden_layers=2).save_pretrained(tmp_path / "m")
    assert shape_of_model(str(tmp_path / "m")).windows == (4096, 4096)
    AutoConfig.for_model("llama", num_hidden_layers=2).save_pretrained(tmp_path / "l")
    assert shape_of_model(str(tmp_path / "l")).windows == ()


def test_crossovers_interpolate_and_say_where_they_cannot():
    curves = {1: {1000: 0.5, 4000: 2.0, 16000: 4.0}, 2: {1000: 1.5, 4000: 2.0}, 4: {1000: 0.5, 4000: 0.9}}
    rows = [
        KernelRow(kernel="k", batch=batch, context=context, speedup=speedup)
        for batch, points in curves.items()
        for context, speedup in points.items()
    ]
    dense = KernelRow(kernel="dense", batch=1, context=1000)
    crossings = {r.batch: (r.tokens, r.bound) for r in crossovers([*rows, dense])}
    assert crossings == {1: (2000, "interpolated"), 2: (1000, "at most"), 4: (None, "more than the longest")}


def test_shapes(tmp_path):
    shape = parse_shape("llama-3.1-8b")
    assert shape.group == 4 and shape.kv_bytes_per_token == 131_072
    assert 15.0e9 < shape.weight_bytes + 2 * shape.hidden * shape.vocab < 16.2e9
    assert shape_of_model("random:qwen2.5-7b").kv_heads == 4
    for text, message in (
        ("llama-3.1-8", "Did you mean 'llama-3.1-8b'"),
        ("custom:layers=2", "needs heads, kv_heads, head_dim"),
        ("custom:layers=0,heads=1,kv_heads=1,head_dim=64", "positive number"),
    ):
        with pytest.raises(InputError, match=message):
            parse_shape(text)


def test_device_models():
    assert set(DEVICES) >= {"h100", "a100"}
    with pytest.raises(InputError, match="Did you mean 'h100'"):
        parse_device("h10")


def test_throttling_and_silence_are_inconclusive():
    calm = {"throttled": []}
    assert verdict(calm, calm)["conclusive"]
    assert not verdict(calm, {"throttled": ["thermal (hardware)"]})["conclusive"]
    assert not verdict(None, None)["conclusive"]


def test_inputs_rotate_until_they_do_not_fit_the_cache():
    assert rotation(10**9, 50 * 10**6) == 1
    assert rotation(10**7, 50 * 10**6) == 15
    assert rotation(2_500_000, 50 * 10**6) == 60, "24 of them would have been 60 MB, most of it found in the cache"
    assert rotation(10, 50 * 10**6) == 256


PROFILE = Path(__file__).resolve().parents[3] / "profiles" / "results" / "profile-h100.json"
DRIVERS_NAME = json.loads(PROFILE.read_text())["provenance"]["device"]
MEASURED_ON = device_named(DRIVERS_NAME)


def test_the_shipped_fit_is_made_by_its_command_and_its_error_is_stated():
    from research.prediction import fitted

    measured = json.loads(PROFILE.read_text())
    result, shipped = fitted(measured, MEASURED_ON.name, "profiles/results/profile-h100.json")
    kept = json.loads((PROFILE.parent / "prediction-h100.json").read_text())
    assert {k: v for k, v in result.as_json().items() if k != "provenance"} == {
        k: v for k, v in kept.items() if k != "provenance"
    }
    fit = shipped_fit()
    assert json.loads(json.dumps(shipped["terms"])) == {k: asdict(t) for k, t in fit.terms.items()}
    assert fit.median_error < 0.1 and fit.worst_error < 0.4
    assert result["speedup"]["fitted_over_measured_worst"] < 1.4 < 5 < result["speedup"]["roofline_over_measured_worst"]


def test_predictions_stand_beside_measurements_where_both_exist():
    request = BenchRequest(parse_shape("llama-3.1-8b"), contexts=(32768, 30000), batches=(1,))
    rows = {(r["kernel"], r["context"]): r for r in predict_device(request, MEASURED_ON)["rows"]}
    one = rows["spectral_index_decode", 32768]
    of_file = [r for r in medians(json.loads(PROFILE.read_text())) if (r["context"], r["batch"]) == (32768, 1)]
    assert one["measured_us"] == pytest.approx(
        next(r["measured_us"] for r in of_file if r["kernel"] == one["kernel"]), rel=1e-3
    )
    assert one["predicted_us"] == pytest.approx(one["measured_us"], rel=0.1)
    assert rows["spectral_index_decode", 30000]["measured_us"] is None
    assert shipped_fit().device == MEASURED_ON.name != "a100"
    for other, device in (
        (replace(request, settings=CodeSettings(share=0.08)), MEASURED_ON),
        (request, parse_device("a100")),
    ):
        row = predict_device(other, device)["rows"][2]
        assert row["kernel"] == "spectral_index_decode" and row["measured_us"] is None
    cell = [r for r in json.loads(PROFILE.read_text())["rows"] if (r.get("context"), r.get("batch")) == (32768, 8)]
    beside = predicted_beside(cell, DRIVERS_NAME, shipped_fit())
    assert set(beside) == {"sdpa_cudnn", "spectral_decode", "spectral_index_decode"}
    assert predicted_beside(cell, "Some other GPU", shipped_fit()) == {}


@pytest.mark.parametrize("context,batch", [(2048, 1), (262144, 16)])
def test_tables_fit_into_80_columns(context, batch):
    stored = read_results(PROFILE)
    stored.rows = [r for r in stored["rows"] if (r.get("context"), r.get("batch")) == (context, batch)]
    predicted = predict_device(
        BenchRequest(parse_shape("llama-3.1-8b"), contexts=(context,), batches=(1,)), parse_device("h100")
    )
    for result in (stored, predicted):
        console = Console(width=80, record=True, file=io.StringIO())
        for part in speed_view(result):
            console.print(part)
        said = console.export_text()
        assert "…" not in said, said
    assert "llama-3.1-8b, predicted for h100" in said and "Predicted, nothing here was timed" in said
