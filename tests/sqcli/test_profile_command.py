"""`sq profile` without a GPU, and stored profiles shown again."""

import json
from pathlib import Path

import pytest
import torch

from sqcli.app import main

STORED = Path(__file__).resolve().parents[2] / "profiles" / "results" / "profile-h100.json"


def sq(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["profile", *map(str, arguments)])
    return end.value.code


def test_a_prediction_says_so_everywhere(tmp_path, capsys):
    options = ["--json", tmp_path / "p.json", "--html", tmp_path / "p.html", "--csv", tmp_path / "p.csv"]
    assert sq("--device-model", "a100", "--context", "2048,32768", "--batch", "1,8", *options) == 0
    out = capsys.readouterr().out
    assert "Predicted, nothing here was timed" in out and "predicted" in out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    assert all(r["predicted"] for r in json.loads((tmp_path / "p.json").read_text())["rows"])
    page = (tmp_path / "p.html").read_text()
    assert "predicted, not timed" in page and page.count("<svg") >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_predicts_and_says_why(capsys):
    assert sq("--shape", "mistral-7b") == 0
    assert "No CUDA device here: what follows is predicted for h100" in " ".join(capsys.readouterr().err.split())


def test_a_stored_profile_is_shown_again(tmp_path, capsys):
    assert sq("--show", STORED, "--context", "32768", "--batch", "8", "--html", tmp_path / "p.html") == 0
    out = capsys.readouterr().out
    assert "context 32,768, batch 8" in out and "context 2,048" not in out
    cell = [r for r in json.loads(Path(STORED).read_text())["rows"] if (r.get("context"), r.get("batch")) == (32768, 8)]
    shown = [f"{r['speedup']:.2f}x" for r in cell if r["kernel"].startswith("spectral_") and r.get("speedup")]
    assert shown and all(text in out for text in shown)
    assert max(map(len, out.splitlines())) <= 80
    assert sq("--show", STORED, "--html", tmp_path / "all.html") == 0
    assert "time by context at batch 1" in (tmp_path / "all.html").read_text()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--context", "lots"], "not a list of positive numbers"),
        (["--context", "100"], "at least 264"),
        (["--shape", "llama"], "There is no shape 'llama'"),
        (["--shape", "llama-3.1-8b", "--model", "x"], "give one of them"),
        (["--kernels", "spectral_deco"], "Did you mean 'spectral_decode'"),
        (["--device-model", "h1000"], "Did you mean 'h100'"),
        (["--share", "2"], "less than or equal to 1"),
        (["--model", "/no/such/folder"], "cannot be read"),
        (["--show", STORED, "--context", "5"], "has no context 5"),
        (["--show", STORED.with_name("gate-simulation.json")], "not those of sq profile"),
    ],
)
def test_wrong_input(arguments, message, capsys):
    assert sq(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
