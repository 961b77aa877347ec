"""`sq calibrate --check`: what a profile costs on other text, with and without a calibration."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import SMALL_CALIBRATION, profile_of

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibrating.check import check_texts
from spectralquant.calibration.targets import parse_target
from spectralquant.errors import SourceError
from spectralquant.profile.model import CalibrationProfile
from spectralquant.text.read import load_text, open_sources
from spectralquant.text.tokens import tokenize
from sqcli.app import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    loaded, _ = profile_of("llama")
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 10_000)
    settings = replace(SMALL_CALIBRATION, tiers=("cold",), targets={"cold": parse_target("error=0.004")})
    calibrate_model(loaded, text, settings, out=folder / "promised")
    (folder / "code.txt").write_text("\n".join(load_text("builtin:stdlib").__next__().splitlines()[:400]))
    (folder / "short.txt").write_text("too short")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def test_a_profile_is_checked_on_several_texts(place, capsys):
    out = place / "rows.json"
    code = run(
        *["calibrate", "--profile", place / "promised", "--model", place / "model", "--json", out],
        *["--check", f"file:{place / 'code.txt'}", "--check", "builtin:pydoc"],
    )
    result = json.loads(out.read_text())
    assert result["kind"] == "spectralquant.text-cost"
    rows = result["rows"]
    assert [r["text"] for r in rows] == [f"file:{place / 'code.txt'}", "builtin:pydoc"]
    for row in rows:
        assert row["payload_ratio"] > 1 and row["error"] > 0 and 0 <= row["outside"] <= 1
        assert sum(row["ways"].values()) > 1 and row["promised_kl"] == 0.004
        assert row["kept"] is (row["predicted_kl"] <= 1.25 * 0.004)
    assert code == int(any(r["kept"] is False for r in rows))
    assert "promised: KL 0.004" in capsys.readouterr().out


def test_what_promises_nothing_is_compared_with_home(place):
    _, profile = profile_of("llama")
    home = profile.sidecar.tiers["cold"].as_calibrated
    assert home.error > 0 and home.kl == profile.sidecar.tiers["cold"].measured["kl_nats"]
    loaded, _ = profile_of("llama")
    (row,) = check_texts(loaded, profile, open_sources(["builtin:stdlib"]))
    assert row.kept is None and row.error_at_home == home.error
    assert row.predicted_kl == pytest.approx(home.kl * row.error / home.error)
    assert set(row.ways) == {"as calibrated"}


def test_a_bound_keeps_errors_where_without_one_they_would_be_larger(place):
    loaded, _ = profile_of("llama")
    promised = CalibrationProfile.load(place / "promised")
    (held,) = check_texts(loaded, promised, open_sources(["builtin:stdlib"]))
    promised.sidecar.tiers["cold"].target = "ratio=10"
    (free,) = check_texts(loaded, promised, open_sources(["builtin:stdlib"]))
    assert held.error == pytest.approx(free.error) and held.coded_bytes >= free.coded_bytes
    assert held.predicted_kl <= free.predicted_kl * 1.01


def test_checks_that_cannot_be_are_refused(place, capsys):
    loaded, profile = profile_of("llama")
    with pytest.raises(SourceError, match="384"):
        check_texts(loaded, profile, open_sources([f"file:{place / 'short.txt'}"]))
    assert run("calibrate", "--profile", place / "promised", "--model", place / "model") == 2
    assert "--check" in capsys.readouterr().err
