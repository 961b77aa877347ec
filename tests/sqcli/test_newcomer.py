"""Wrong inputs of somebody who has only read the README: refused before the work, in one line, with the way out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
from hostile_for_tests import material

from spectralquant.claims import claimed
from spectralquant.errors import InputError
from sqcli.app import main


def sq(capsys, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    said = capsys.readouterr().err
    assert "Traceback" not in said and "Internal error" not in said
    return end.value.code, " ".join(said.replace("│", " ").split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small model of the hostile files, as a folder, with its profile."""
    m, folder = material(), tmp_path_factory.mktemp("newcomer")
    m.loaded.model.save_pretrained(folder / "model")
    m.loaded.tokenizer.save_pretrained(folder / "model")
    for name in ("genuine.json", "genuine.safetensors"):
        shutil.copy(m.folder / name, folder / name)
    (folder / "genuine.sqkv").write_bytes(m.packet)
    return folder


NUMBERS = [
    ("pack", "--max-tokens", -5),
    ("pack", "--max-tokens", 0),
    ("unpack", "--new-tokens", -3),
    ("unpack", "--new-tokens", 0),
    ("generate", "--new-tokens", -1),
    ("generate", "--chunk", 0),
    ("generate", "--seed", -1),
    ("generate", "--seed", 2**63),
    ("compare", "--windows", 0),
    ("compare", "--needle", -1),
    ("compare", "--calibration-windows", -1),
    ("calibrate", "--steps", -3),
    ("calibrate", "--window", -512),
    ("calibrate", "--held-out", 0),
    ("calibrate", "--held-out-window", -1),
    ("calibrate", "--seed", -1),
    ("study", "--steps", -1),
    ("study", "--windows", 0),
    ("study", "--window", -2048),
    ("study", "--train-seconds", -1),
    ("study", "--train-seconds", 0),
    ("profile", "--bits", -4),
    ("profile", "--index-rank", -16),
    ("profile", "--share", -0.1),
    ("profile", "--share", 1.5),
    ("profile", "--window", 0),
    ("profile", "--seed", -1),
    ("gate", "--rounds", -1),
    ("show", "--layer", -1),
    ("show", "--head", -1),
]
NEEDED = {
    "pack": ["--profile", "p", "--out", "x", "text"],
    "unpack": ["x", "--profile", "p"],
    "generate": ["text"],
    "compare": ["h2o"],
    "study": ["cold", "--out", "x.json"],
    "show": ["p"],
    "gate": ["--against", "/nowhere"],
}


@pytest.mark.parametrize("command,option,value", NUMBERS, ids=lambda v: str(v))
def test_numbers_have_ranges(command, option, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = sq(capsys, command, *NEEDED.get(command, []), option, value)
    assert code == 2 and option in said, said
    assert not list(tmp_path.iterdir())


OUTPUTS = [
    ("calibrate", ["--out"], []),
    ("calibrate", ["--json", "--csv", "--svg"], []),
    ("compare", ["--json", "--csv", "--html"], ["h2o"]),
    ("pack", ["--out", "--json"], ["--profile", "genuine", "text"]),
    ("generate", ["--json"], ["text"]),
    ("profile", ["--html", "--json"], []),
    ("study", ["--out"], ["gate"]),
    ("gate", ["--save"], ["--run", "smoke"]),
    ("show", ["--html", "--svg"], ["genuine"]),
    ("report", ["--out"], ["x.json"]),
]


@pytest.mark.parametrize("command,options,rest", OUTPUTS, ids=lambda v: str(v))
@pytest.mark.parametrize("place", ["below a file", "too long", "a folder"])
def test_output_paths_are_tested_before_the_work(command, options, rest, place, capsys, tmp_path, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (tmp_path / "file").write_text("")
    path = {"below a file": tmp_path / "file" / "x.json", "too long": tmp_path / ("x" * 300), "a folder": tmp_path}[
        place
    ]
    for option in options:
        more = ["--out", tmp_path / "p.sqkv"] if command == "pack" and option != "--out" else []
        begin = time.perf_counter()
        code, said = sq(capsys, command, *rest, option, path, *more)
        assert code == 2 and option in said and str(tmp_path)[:20] in said.replace(" ", ""), said
        assert time.perf_counter() - begin < 60


def test_a_foreign_model_is_refused_by_its_configuration_alone(capsys, folder, tmp_path):
    """The weights are missing: whoever tried to read them would say so."""
    config = json.loads((folder / "model" / "config.json").read_text()) | {"num_hidden_layers": 7}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    for command in (
        ["pack", "--profile", folder / "genuine", "--out", tmp_path / "x", "text"],
        ["generate", "--profile", folder / "genuine", "text"],
        ["compare", "h2o", "--profile", folder / "genuine"],
        ["study", "cache", "--profile", folder / "genuine", "--out", tmp_path / "x.json"],
    ):
        code, said = sq(capsys, *command, "--model", tmp_path / "model")
        assert code == 2 and "its number of layers is 7, not 2" in said, said


LONG = [
    ["pack", "--profile", "genuine", "--model", "model", "--out", "x.sqkv", "word " * 900],
    ["generate", "--profile", "genuine", "--model", "model", "--new-tokens", 4000, "word " * 60],
    ["compare", "h2o", "--profile", "genuine", "--model", "model", "--context", 5000],
    ["compare", "h2o", "--profile", "genuine", "--model", "model", "--context", 999_999],
    ["unpack", "genuine.sqkv", "--profile", "genuine", "--model", "model", "--then", "word", "--new-tokens", 99_999],
    ["calibrate", "--model", "model", "--window", 5000, "--steps", 1, "--out", "y"],
    ["calibrate", "--model", "model", "--held-out-window", 5000, "--steps", 1, "--out", "y"],
    ["profile", "--model", "model", "--context", 5000],
    ["study", "tiers", "--model", "model", "--window", 5000, "--steps", 1, "--windows", 1, "--out", "x.json"],
]


@pytest.mark.parametrize("arguments", LONG, ids=lambda a: " ".join(map(str, a[:1])))
def test_a_context_beyond_the_models_positions_is_refused_with_the_reason(arguments, capsys, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, said = sq(capsys, *arguments)
    assert code == 2 and "4,096 positions" in said, said
    assert not list(folder.glob("[xy]*"))


@pytest.mark.parametrize("more", [["--dry-run"], []], ids=["plan", "run"])
@pytest.mark.parametrize("option", ["--window", "--held-out-window"])
def test_a_window_beyond_the_models_positions_is_refused_before_its_plan(folder, capsys, tmp_path, option, more):
    words = ["--model", folder / "model", option, "10000000", *more]
    code, said = sq(capsys, "calibrate", *words, *([] if more else ["--out", tmp_path / "p"]))
    assert code == 2 and f"{option} 10000000 has 10,000,000 tokens" in said and "plan" not in said


def test_a_prediction_that_fits_into_no_memory_is_refused(capsys):
    code, said = sq(capsys, "profile", "--batch", 100_000_000, "--device", "cpu")
    assert code == 2 and "does not fit into memory" in said and "h100 has 80 GB" in said


@pytest.mark.parametrize("size", ["-1MB", "x", "9" * 400, "1e9", ""])
def test_sizes_that_are_none(size, capsys):
    code, said = sq(capsys, "generate", "--tier", "exact", "--budget", size, "text")
    assert code == 2 and "--budget" in said


def test_one_run_at_a_time_on_one_output(capsys, tmp_path, folder):
    out = tmp_path / "p"
    code = (
        "import sys, time\nfrom spectralquant.claims import claimed\n"
        "with claimed(sys.argv[1], '--out'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        found, said = sq(capsys, "calibrate", "--model", folder / "model", "--out", out)
        assert found == 2 and "Another run is writing --out" in said
        with pytest.raises(InputError, match="Another run"), claimed(out, "--out"):
            pass
    finally:
        other.kill()
        other.wait()
    with claimed(out, "--out"):
        pass
    assert not [p for p in tmp_path.iterdir() if p.name != ".p.lock"]


@pytest.mark.slow
def test_after_a_full_disk_it_is_said_what_stays(tmp_path, folder):
    """Files of this process have a limit in size: as if the disk were full when the profile is written."""
    limit = len(material().tensors) // 2048
    command = f"ulimit -f {limit}; trap '' XFSZ; exec \"$@\""
    options = [
        "--steps",
        "2",
        "--window",
        "384",
        "--held-out",
        "1",
        "--held-out-window",
        "384",
        "--tier",
        "all",
        "--out",
    ]
    arguments = [sys.executable, "-m", "sqcli", "calibrate", "--model", folder / "model", *options, tmp_path / "p"]
    done = subprocess.run(
        ["/bin/bash", "-c", command, "-", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and "File too large" in said, said
    assert list(tmp_path.iterdir()) == [tmp_path / "p.partial"] and f"stays in {tmp_path / 'p.partial'}" in said


PATHS = [
    ("show", []),
    ("show", ["--diff"]),
    ("inspect", []),
    ("report", []),
    ("compare", ["h2o", "--profile"]),
    ("pack", ["text", "--out", "x.sqkv", "--profile"]),
    ("pack", ["--profile", "genuine", "--out", "x.sqkv", "--file"]),
    ("unpack", ["--profile", "genuine"]),
    ("unpack", ["x.sqkv", "--profile"]),
    ("generate", ["text", "--profile"]),
    ("generate", ["--file"]),
    ("gate", ["--baseline", "x.json", "--current"]),
    ("gate", ["--current", str(__file__), "--baseline"]),
    ("gate", ["--against", "/nowhere", "--limits"]),
    ("gate", ["--against"]),
    ("profile", ["--show"]),
    ("calibrate", ["--config"]),
    ("calibrate", ["--model"]),
    ("calibrate", ["--model", "model", "--offline", "--data"]),
]


@pytest.mark.parametrize("path", ["", ".", "..", "/", "/etc", "x" * 300, "~nobody-here/x", "a[/b]", "/dev/null", "--"])
@pytest.mark.slow
def test_odd_paths_are_one_line_and_exit_2(path, capsys, folder, tmp_path, monkeypatch):
    for name in ("genuine.json", "genuine.safetensors"):
        shutil.copy(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for command, before in PATHS:
        code, said = sq(capsys, command, *before, path)
        assert code == 2, (command, before, said)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["genuine.json", "genuine.safetensors"]
