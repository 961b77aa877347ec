"""Parts of the serving study: measured apart, joined in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from research.serving import study
from spectralquant.errors import InputError
from spectralquant.integrations.serve_check import process
from spectralquant.results.files import read_results, results_file
from spectralquant.results.serving import ServingRow


def part(name: str, **fields):
    row = ServingRow(way="spectral", prompts=4, prefix_tokens=100, same_text=1.0, hit_share=1.0, **fields)
    summary = {"kl_nats": 0.01 if name == "small" else None, "restore_over_recompute_8k": 0.5}
    return results_file(
        "serving", [row], {"command": name}, summary=summary, settings={"name": name}, faults=[f"{name}!"]
    )


def gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def measured(monkeypatch):
    names: list[str] = []

    def measure(name):
        names.append(name)
        return part(name)

    gpus(monkeypatch, 2)
    monkeypatch.setattr(process, "find_spec", lambda name: name)
    monkeypatch.setattr(study, "_small", lambda *_: None)
    monkeypatch.setattr(study, "serve_check", lambda *_, **__: measure("small"))
    monkeypatch.setattr(study, "_large", lambda *_: measure("large"))
    monkeypatch.setattr(study, "_two_ranks", lambda *_: measure("tp"))
    monkeypatch.setattr(study, "_floor", lambda *_: measure("floor"))
    monkeypatch.setattr(study, "_decode", lambda *_: measure("decode"))
    return names


def run(out: Path, *parts: str):
    return study.serving_study("m", Path("p"), parts, offline=True, report=lambda _: None, out=out)


def test_parts_that_are_there_are_joined_and_the_others_measured(measured, tmp_path):
    out = tmp_path / "serving-x.json"
    assert [row.way for row in run(out, "tp").rows] == ["tp2/spectral"]
    result = run(out)
    assert measured == ["tp", "small", "large", "floor", "decode"]
    assert [row.way for row in result.rows] == [
        f"{part}spectral" for part in ("", "8b/", "tp2/", "floor/", "8b-decode/")
    ]
    assert result.summary["kl_nats"] == 0.01 and result.summary["tp2_same_text"] == 1.0
    assert result.faults == ["small!", "8b/large!", "tp2/tp!", "floor/floor!", "8b-decode/decode!"]
    assert set(result.settings) == {"small", "large", "tp", "floor", "decode"}
    run(out)
    assert len(measured) == 5
    run(out, "large")
    assert measured[5:] == ["large"]


def test_what_a_run_that_is_cut_off_has_measured_is_there(measured, tmp_path, monkeypatch):
    out = tmp_path / "serving-x.json"
    run(out, "small")

    def cut_off(folder, report, keep):
        half = part("large")
        half.settings["unfinished"] = ["vllm-files"]
        keep(half)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "_large", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(out, "large")
    assert [row.way for row in read_results(out).rows] == ["spectral", "8b/spectral"]
    monkeypatch.setattr(study, "_large", lambda *_: part("large"))
    run(out)  # the half part is measured again, the whole one is not
    assert measured == ["small", "tp", "floor", "decode"]
    assert all("unfinished" not in settings for settings in read_results(out).settings.values())


def test_a_part_that_this_machine_cannot_run_is_refused(measured, tmp_path, monkeypatch):
    gpus(monkeypatch, 1)
    with pytest.raises(InputError, match=r"^Part tp of serving needs 2 GPUs, and PyTorch can use 1 here\.$"):
        run(tmp_path / "x.json", "small", "tp")
    assert measured == []
    rows = run(tmp_path / "x.json").rows
    assert [row.way for row in rows] == ["spectral", "8b/spectral", "floor/spectral", "8b-decode/spectral"]
