"""The gate's own text never changes, and what cannot be compared is not measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.gate.fingerprint import mismatches
from spectralquant.gate.limits import Limits
from spectralquant.gate.run import judge, run_suite
from spectralquant.gate.suites import gpu, smoke
from spectralquant.results.files import read_results
from spectralquant.text.read import load_text
from sqcli.app import main

ROOT = Path(__file__).resolve().parents[3]
BASELINE = ROOT / "profiles" / "baselines" / "smoke.json"
OLD_BASELINE = ROOT / "tests" / "data" / "stored" / "smoke-baseline.json"


def test_the_text_is_the_same_in_every_version():
    text = "\n\n".join(load_text("builtin:gate"))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "fe9ed8c7da38b4b2174fdd4f1f2323a198fe7480a6531fc7f5cd909bb843ddf9"
    ), "baselines everywhere were measured on this text: put it back"


def test_the_baseline_is_of_that_text_and_the_old_one_of_pythons_manual():
    assert read_results(BASELINE)["provenance"]["text"] == "builtin:gate"
    assert read_results(OLD_BASELINE)["provenance"]["text"] == "builtin:pydoc"


@pytest.fixture
def not_measured(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("measured although the baseline cannot be compared with it")

    monkeypatch.setattr(smoke, "smoke_suite", fail)
    monkeypatch.setattr(gpu, "gpu_suite", fail)


def test_a_baseline_of_another_text_is_told_before_measuring(small_folder, tmp_path, capsys, not_measured):
    write_json(tmp_path / "base.json", read_results(OLD_BASELINE).as_json())
    arguments = ["gate", "--run", "smoke", "--model", small_folder, "--baseline", tmp_path / "base.json"]
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--json", str(tmp_path / "verdicts.json")])
    assert end.value.code == 3
    said = capsys.readouterr()
    assert "data hash differs" in said.out and "Nothing was measured" in said.err
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    assert verdicts["counts"]["inconclusive"] == len(verdicts["rows"]) > 30


def test_what_is_told_before_measuring_is_what_would_be_told_after(small, tokenizer):
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import open_sources

    text = tokenize_sources(tokenizer, open_sources("builtin:gate"), smoke.TOKENS, window=512)
    header = smoke.smoke_suite_header(small, text, "builtin:gate")
    measured = smoke.smoke_suite(small, text, "builtin:gate")
    assert header["rows"] == [] and measured["rows"] and mismatches(measured, header) == []
    assert judge(measured, measured, Limits()).code == 0


def test_another_suite_is_told_before_measuring(not_measured, monkeypatch):
    monkeypatch.setattr(gpu, "device_facts", lambda device: {"device": "a GPU", "driver": "1", "cuda": "1"})
    monkeypatch.setattr("spectralquant.models.load.pick_device", lambda name: torch.device("cuda", 0))
    baseline = read_results(BASELINE)
    header = run_suite("gpu", "", (), "auto", True, lambda *a: None, baseline=baseline)
    outcome = judge(baseline, header, Limits())
    assert header["rows"] == [] and outcome.code == 3 and any("suite differs" in m for m in outcome.mismatch)


def test_results_without_rows_that_could_be_compared_are_refused():
    baseline = read_results(BASELINE)
    with pytest.raises(InputError, match="nothing that can be gated"):
        judge(baseline, baseline.updated(rows=[]), Limits())
