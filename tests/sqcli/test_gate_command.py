"""`sq gate` from the outside: exit codes, files, annotations, wrong input."""

import json
import sys
from pathlib import Path

import pytest
from junitparser import JUnitXml

from spectralquant.files import write_json
from spectralquant.gate import interleaved
from spectralquant.gate.interleaved import Side, compare_installs
from spectralquant.gate.limits import Limits
from spectralquant.gate.run import judge
from spectralquant.results.files import read_results, results_file
from sqcli.app import main

ROUNDS = 7  # the fewest that the statistics take
FACTS = {"weights_sha256": "w", "data_sha256": "d", "dtype": "torch.float32", "device": "some CPU"}


def suite(path, **values):
    rows = [{"metric": name, "value": value} for name, value in values.items()]
    write_json(path, results_file("gate", rows, dict(FACTS), suite="smoke").as_json())
    return str(path)


def sq(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["gate", *map(str, arguments)])
    return end.value.code


@pytest.fixture
def files(tmp_path):
    base = suite(tmp_path / "base.json", **{"a/kl_nats": 0.01, "a/top1": 0.99, "b/kl_nats": 0.01})
    worse = suite(tmp_path / "worse.json", **{"a/kl_nats": 0.05, "a/top1": 0.99, "b/kl_nats": 0.012})
    return base, worse


def test_exit_codes(files, tmp_path, capsys):
    base, worse = files
    assert sq("--baseline", base, "--current", base) == 0
    assert "3 pass: PASSED" in capsys.readouterr().out
    assert sq("--baseline", base, "--current", worse) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "regression: a/kl_nats: rose by 0.04, allowed 0.001" in out and "1 pass" in out
    assert sq("--baseline", base, "--current", worse, "--exit-zero") == 0
    other = json.loads((tmp_path / "base.json").read_text())
    other["provenance"]["weights_sha256"] = "another"
    write_json(tmp_path / "other.json", other)
    assert sq("--baseline", tmp_path / "other.json", "--current", base) == 3
    assert "model hash differs" in capsys.readouterr().out


def test_files_and_annotations(files, tmp_path, capsys, monkeypatch):
    base, worse = files
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    options = ["--junit", tmp_path / "gate.xml", "--json", tmp_path / "v.json", "--csv", tmp_path / "v.csv"]
    assert sq("--baseline", base, "--current", worse, "--markdown", tmp_path / "gate.md", *options) == 1
    out = capsys.readouterr().out
    errors = [line for line in out.splitlines() if line.startswith("::error")]
    assert errors[0].startswith("::error title=sq gate: a/kl_nats::rose by")
    assert len(errors) == 2
    suites = JUnitXml.fromfile(str(tmp_path / "gate.xml"))
    assert (suites.tests, suites.failures, suites.errors) == (3, 2, 0)
    page = (tmp_path / "gate.md").read_text()
    assert page == (tmp_path / "summary.md").read_text()
    assert page.index("a/kl_nats") < page.index("b/kl_nats") < page.index("a/top1"), "the worst first"
    result = read_results(tmp_path / "v.json")
    assert result["exit_code"] == 1 and result["counts"]["regression"] == 2
    assert (tmp_path / "v.csv").read_text().startswith("metric,verdict,why")


def test_json_on_stdout_stays_alone(files, capsys, monkeypatch):
    base, worse = files
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert sq("--baseline", base, "--current", worse, "--json", "-", "--quiet") == 1
    assert json.loads(capsys.readouterr().out)["counts"]["regression"] == 2


def test_a_baseline_is_updated_on_purpose_alone(files, tmp_path, capsys):
    base, worse = files
    assert sq("--baseline", base, "--current", worse, "--update-baseline") == 0
    assert "regression: a/kl_nats" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "base.json").read_text()) == json.loads((tmp_path / "worse.json").read_text())
    new = tmp_path / "new.json"
    assert sq("--baseline", new, "--current", worse, "--update-baseline") == 0
    assert new.is_file()


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "Give one of --current FILE, --run SUITE and --against PATH"),
        (["--current", "a.json", "--run", "smoke"], "not --current and --run"),
        (["--run", "smoke"], "--baseline FILE is missing"),
        (["--run", "smok", "--save", "x.json"], "Did you mean 'smoke'"),
        (["--baseline", "none.json", "--current", "none.json"], "There is no results file"),
        (["--against", "/nowhere"], "is not an install"),
        (["--against", sys.executable, "--rounds", "5"], "at least 7"),
        (["--current", "x.json", "--update-baseline"], "--update-baseline needs --baseline"),
    ],
)
def test_wrong_input(arguments, message, capsys):
    assert sq(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_worker_that_cannot_start_says_why():
    from spectralquant.errors import InputError

    side = Side([sys.executable, "-c", "raise SystemExit('no such thing here')"], {}, "other")
    with pytest.raises(InputError, match="other cannot be timed: no such thing here"):
        side.answer()
    side.close()


def test_a_worker_that_says_much_on_stderr_is_not_stopped_by_it():
    code = "import sys; sys.stderr.write('x' * 1_000_000); print('{}', flush=True); [print('{}', flush=True) for _ in sys.stdin]"
    side = Side([sys.executable, "-c", code], {}, "talkative")
    assert side.answer() == {} and side.round() == {}
    side.close()


def test_a_worker_that_dies_or_babbles_is_an_input_error():
    from spectralquant.errors import InputError

    side = Side([sys.executable, "-c", "print('hello'); raise SystemExit('gone')"], {}, "other")
    with pytest.raises(InputError, match="it answered 'hello'"):
        side.answer()
    side.process.wait()
    with pytest.raises(InputError, match="cannot be timed: gone"):
        side.round()
    side.close()


@pytest.mark.slow  # two workers that import torch
def test_an_install_is_as_fast_as_itself(monkeypatch):
    here = Path(__file__).resolve()
    monkeypatch.setattr(interleaved, "WORKER", "timing_for_tests")
    monkeypatch.chdir(here.parent)  # where `python -m` finds it
    before, now = compare_installs(str(here.parents[2]), ROUNDS, lambda *a: None)
    names = {r["metric"] for r in now["rows"]}
    assert {"timing/token/hot/seconds", "timing/packet/pack/seconds"} <= names
    assert all(len(r["samples"]) == ROUNDS for r in before["rows"] + now["rows"])
    generous = Limits((("seconds", {"relative": 0.5}),))
    assert "regression" not in {v.verdict for v in judge(before, now, generous, interleaved=True).verdicts}
