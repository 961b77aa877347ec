"""`sq compare`, `sq report` and `sq generate` as a user meets them."""

from __future__ import annotations

import csv
import json
import re
from itertools import islice
from pathlib import Path

import pytest
from commands_for_tests import process
from commands_for_tests import said as sq

from spectralquant.text.read import load_text

from conftest import profile_of  # isort: skip


SHORT = ("--context", "640", "--windows", "1", "--needle", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    """A small model's folder and its profile with all tiers."""
    loaded, profile = profile_of("llama")
    folder = tmp_path_factory.mktemp("compare")
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    profile.save(folder / "profile")
    (folder / "text.txt").write_text("\n".join(islice(load_text("builtin:stdlib"), 6)))
    return folder / "model", folder / "profile"


def compare(place, *arguments, run=sq):
    model, profile = place
    common = (
        "--model",
        model,
        "--profile",
        profile,
        "--data",
        f"file:{model.with_name('text.txt')}",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    )
    return run("compare", *arguments, *common)


@pytest.mark.slow
def test_quick_comparison_answers_in_one_screen(place, tmp_path):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "html", "svg")}
    arguments = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    done = compare(place, "turboquant", "h2o:keep=0.2", "--quick", "--match", "kl=0.001", *arguments)
    assert done.returncode == 0, done.stderr
    for text in ("spectral cold", "turboquant bits=3", "h2o keep=0.2", "Pareto", "too small to quote", "At KL 0.001"):
        assert text in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    result = json.loads(files["json"].read_text())
    assert result["kind"] == "spectralquant.compare" and not result["protocol"]["quotable"]
    assert {r["method"] for r in result["rows"]} == {"none", "spectral", "turboquant", "h2o"}
    assert len({r["n_tokens"] for r in result["rows"]}) == 1, "every method sees the same tokens"
    assert len(list(csv.DictReader(files["csv"].open()))) == len(result["rows"])
    page = files["html"].read_text()
    assert "<svg" in page and "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    report = sq("report", files["json"], "--out", tmp_path / "report.html")
    assert report.returncode == 0, report.stderr
    assert "Pareto front" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["turboquan"], "Did you mean 'turboquant'"),
        (["h2o:keep=2"], "outside 0 to 1"),
        (["h2o:kept=0.2"], "no option 'kept'"),
        (["kivi:bits=two"], "whole number"),
        (["h2o", "--match", "dppl=1"], "kl=VALUE"),
        (["h2o", "--context", "12"], "at least 384"),
        (["h2o", "--windows", "5000"], "fewer --windows"),
        (["turboquant+h2o:keep=0.2,bits=3", "--quick"], "h2o+spectral"),
        (["hf_quantized:backend=hqq,bits=5", "--quick"], "not one of"),
    ],
)
@pytest.mark.slow
def test_wrong_input_is_one_clear_line(place, arguments, message):
    done = compare(place, *arguments)
    assert done.returncode == 2
    assert message in " ".join((done.stderr + done.stdout).split())
    assert "Traceback" not in done.stderr


def test_report_of_everything_measured(tmp_path):
    results = sorted((Path(__file__).resolve().parents[2] / "profiles" / "results").glob("*.json"))
    done = sq("report", *results, "--out", tmp_path / "all.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "all.html").read_text()
    for path in results:
        assert path.stem in page
    (tmp_path / "not.json").write_text("{}")
    for bad, message in (("not.json", "not a results file"), ("none.json", "no results file")):
        done = sq("report", tmp_path / bad)
        assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize("tier", ["hot", "cold", "exact"])
@pytest.mark.slow
def test_generate_shows_text_and_memory(place, tier, tmp_path):
    model, profile = place
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    arguments = ["--file", prompt, "--tier", tier, "--new-tokens", 5, "--model", model, "--device", "cpu"]
    if tier != "exact":
        arguments += ["--profile", profile, "--exact-bits", 8]
    done = sq("generate", *arguments, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out.json").read_text())["rows"][0]
    assert tier == "exact" or row["exact_bytes"] < row["exact_tokens"] / row["tokens"] * row["fp16_bytes"]
    assert row["new_tokens"] == 5
    assert row["tiers"][tier]["tokens"] > 0
    assert "resident" in done.stdout


@pytest.mark.slow
def test_a_budget_below_the_exact_tokens_is_refused(place, tmp_path):
    model, profile = place
    (tmp_path / "prompt.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    arguments = [
        "-f",
        tmp_path / "prompt.txt",
        "--new-tokens",
        5,
        "--model",
        model,
        "--device",
        "cpu",
        "--profile",
        profile,
    ]
    refused = sq("generate", *arguments, "--budget", "5")
    assert refused.returncode == 2 and "132 exact tokens" in refused.stderr and "--exact-bits 8" in refused.stderr
    least = int(re.search(r"take ([\d,]+) *alone", " ".join(refused.stderr.split()))[1].replace(",", ""))
    assert sq("generate", *arguments, "--budget", str(least - 1)).returncode == 2
    assert sq("generate", *arguments, "--budget", str(least)).returncode == 0
    assert "--exact-bits" not in sq("generate", *arguments, "--budget", "5", "--exact-bits", "8").stderr


@pytest.mark.slow
def test_generate_says_what_it_did_not_compress(place, tmp_path):
    model, profile = place
    arguments = ["A short prompt", "--tier", "hot", "--new-tokens", 5, "--model", model, "--device", "cpu"]
    done = sq(
        "generate", *arguments, "--profile", profile, "--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv"
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out.json").read_text())["rows"][0]
    [reason] = row["not_compressed"]
    assert (reason["reason"], reason["tokens"]) == ("below_window", row["prompt_tokens"] + 4)
    assert reason["message"] in " ".join(done.stdout.split())
    assert "NotCompressedWarning" not in done.stderr, "said once"
    assert "below_window" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give one prompt"),
        (["x", "--tier", "hot"], "needs --profile"),
        (["x", "--budget", "lots"], "not a size"),
        (
            ["x", "--tier", "exact", "--exact-bits", "8"],
            "one of the tiers hot, warm and cold, or hold these tokens at 16",
        ),
        (["x", "--file", "nowhere.txt"], "one prompt"),
        (["--file", "nowhere.txt"], "no file"),
        (["x", "--new-tokens", "9999"], "positions"),
    ],
)
@pytest.mark.slow
def test_generate_refuses_wrong_input(place, arguments, message):
    done = sq("generate", *arguments, "--model", place[0], "--device", "cpu")
    assert done.returncode == 2, done.stderr
    assert message in " ".join((done.stderr + done.stdout).split())


@pytest.mark.slow
def test_a_comparison_is_shared_by_processes(place, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    named = ("turboquant:bits=3", "h2o:keep=0.2", *SHORT)
    for part, run in (("1/2", process), ("2/2", sq)):
        done = compare(place, *named, "--part", part, run=run)
        assert done.returncode == 0 and f"Part {part[0]} of 2 is kept" in " ".join(done.stderr.split()), done.stderr
        assert "turboquant" not in done.stdout, "no table of half the rows"
    out = tmp_path / "out.json"
    done = compare(place, *named, "--resume", "--json", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {row["method"] for row in result["rows"]} == {"none", "spectral", "turboquant", "h2o"}
    modes = len({(row["method"], row.get("mode")) for row in result["rows"]})
    assert 0 < result["provenance"]["resumed_parts"] <= modes
    assert "nothing was finished" not in done.stderr


@pytest.mark.slow
def test_comparisons_of_other_methods_are_other_runs(place, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    named = (*SHORT, "--part", "1/2")
    for method in ("h2o:keep=0.2", "turboquant:bits=3"):
        done = compare(place, method, *named)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache" / "unfinished").glob("compare-*/"))) == 2
    done = compare(place, "h2o:keep=0.2", *SHORT, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache" / "unfinished").glob("compare-*/"))) == 1, "the other run's parts stay"


def test_a_part_writes_no_results(place, tmp_path):
    done = compare(place, "h2o", "--part", "1/2", "--json", tmp_path / "out.json")
    assert done.returncode == 2 and "--json has no effect with --part" in " ".join(done.stderr.split())
    done = compare(place, "h2o", "--part", "3/2")
    assert done.returncode == 2 and "first of two parts" in " ".join(done.stderr.split())
