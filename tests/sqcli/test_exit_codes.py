"""Exit codes: 1 only where a check found something, 2 for input, 70 for our own faults, 130 for Ctrl-C; pipes that close."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectralquant.errors import InputError
from sqcli.app import main

SQ = [sys.executable, "-m", "sqcli"]
ROOT = Path(__file__).resolve().parents[2]
BASELINE = ROOT / "profiles/baselines/smoke.json"
GATE = ["gate", "--baseline", str(BASELINE), "--current", str(BASELINE)]


def sq(*arguments, **options):
    return subprocess.run(
        [*SQ, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, **options
    )


def code_of(monkeypatch, error: BaseException, *flags: str) -> int:
    """The exit code of `sq gate` when reading its results raises `error`."""

    def raises(*_):
        raise error

    monkeypatch.setattr("spectralquant.results.files.read_results", raises)
    with pytest.raises(SystemExit) as end:
        main([*flags, *GATE])
    return end.value.code


@pytest.mark.parametrize(
    "error,code,said",
    [
        (InputError("the way\nout"), 2, "sq: the way out\n"),
        (KeyError("x"), 70, "Internal error: KeyError: 'x' (test_exit_codes.py:"),
        (AssertionError(), 70, "AssertionError: no message"),
        (SystemExit(1), 70, "Internal error: SystemExit"),
        (SystemExit("a library gave up"), 70, "a library gave up"),
        (SystemExit(0), 0, ""),
        (RecursionError("deep"), 70, "RecursionError"),
        (MemoryError(), 2, "Not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            2,
            "Not enough memory",
        ),
        (RuntimeError("something else"), 70, "Internal error"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y cannot be used: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left"),
        (OSError("no number"), 70, "Internal error: OSError"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (type("PanicException", (BaseException,), {})("a panic"), 70, "PanicException: a panic"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), 70, "UnicodeEncodeError"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__ if isinstance(v, BaseException) else str(v),
)
def test_every_end_has_its_code_and_one_line(monkeypatch, capsys, error, code, said):
    assert code_of(monkeypatch, error) == code
    found = capsys.readouterr()
    assert said in found.err and "Traceback" not in found.err
    assert len(found.err.strip().splitlines()) == bool(said)


def test_an_interrupt_that_a_library_turned_into_its_own_error(monkeypatch, capsys):
    error = ImportError("numpy could not be initialized")
    error.__context__ = KeyboardInterrupt()
    assert code_of(monkeypatch, error) == 130
    error = InputError("Cannot write the checkpoint: the disk is full.")
    error.__context__ = KeyboardInterrupt()
    assert code_of(monkeypatch, error) == 2 and "disk is full" in capsys.readouterr().err


def test_debug_prints_the_traceback_and_the_code_stays(monkeypatch, capsys):
    assert code_of(monkeypatch, KeyError("x"), "--debug") == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main(["show", "nowhere", "--debug"])
    assert end.value.code == 2 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--debug"], ""), (["calibrate", "--version", "--debug"], "--json). See sq calibrate --help.")],
)
def test_wrong_usage_has_no_traceback(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    error = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and "Traceback" not in error and said in error


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b[0m", "[/red] no [bold]markup", "\ud800 surrogate"])
def test_what_files_say_is_shown_and_not_obeyed(monkeypatch, capsys, text):
    assert code_of(monkeypatch, InputError(f"bad: {text}")) == 2
    assert "\x1b[31m" not in capsys.readouterr().err


def test_names_with_brackets_are_no_markup(tmp_path):
    out = tmp_path / "a[" / "b].html"
    done = sq("report", BASELINE, "--out", out)
    assert done.returncode == 0 and out.is_file(), done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["gate", "--help"], GATE, [*GATE, "--json", "-"]])
def test_a_reader_that_goes_away_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*SQ, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(write)
    assert done.returncode == 0 and "sq:" not in done.stderr and "Error" not in done.stderr


def test_files_are_written_although_the_reader_of_stdout_left(tmp_path):
    read, write = os.pipe()
    os.close(read)
    worse = json.loads(BASELINE.read_text())
    worse["rows"][2]["value"] *= 0.5
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    command = ["gate", "--baseline", BASELINE, "--current", tmp_path / "worse.json", "--junit", tmp_path / "j.xml"]
    done = subprocess.run([*SQ, *map(str, command)], stdout=write, check=False, timeout=120)
    os.close(write)
    assert done.returncode == 1 and (tmp_path / "j.xml").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_said():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SQ, *GATE], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == 2 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_closed_streams_do_not_matter():
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m sqcli "$@" >&- 2>&-', sys.executable, *GATE], check=False, timeout=120
    )
    assert done.returncode == 0


@pytest.mark.parametrize("seconds", [0.15, 0.3, 0.6, 1.2, 2.4, 3.6])
def test_an_interrupt_while_importing_prints_no_traceback(seconds, tmp_path):
    command = [*SQ, "calibrate", "--model", "random:smollm2-135m", "--out", str(tmp_path / "p"), "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode in (130, -signal.SIGINT)  # the latter before Python itself listens
    assert "Traceback" not in said


CONFIGS = {
    "not TOML": ("[calibrate", "is not TOML"),
    "not UTF-8": (b"\xff\xfe[\x00", "is not TOML"),
    "no command": ("[calibrat]\nsteps = 3", "Did you mean 'calibrate'"),
    "no table": ("calibrate = 3", "calibrate must be one table of options, as [calibrate]"),
    "several tables": ("[[calibrate]]\nsteps = 3", "calibrate must be one table of options"),
    "outside a table": ("steps = 3", "steps stands outside a table. Put it under its command's"),
    "no option": ("[calibrate]\nstepz = 3", "no option 'stepz'"),
    "text for a number": ("[calibrate]\nsteps = '3'", "steps in [calibrate] must be a whole number"),
    "truth for a number": ("[calibrate]\nsteps = true", "must be a whole number"),
    "number for truth": ("[calibrate]\nresume = 1", "must be true or false"),
    "table for a number": ("[calibrate]\nsteps = {a = 1}", "must be a whole number"),
    "date for a text": ("[calibrate]\nmodel = 1979-05-27", "must be a text"),
    "list for a text": ("[calibrate]\nmodel = ['a', 'b']", "must be a text"),
    "table in a list": ("[calibrate]\ntarget = [{a = 1}]", "must be a text, or a list of them"),
    "too deep": ("a = " + "[" * 5000 + "]" * 5000, "--config"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_malformed_config_is_one_line_and_exit_2(case, tmp_path, capsys):
    text, message = CONFIGS[case]
    file = tmp_path / "sq.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as end:
        main(["calibrate", "--config", str(file)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and message in said and len(said.splitlines()) == 1


RESULTS = {
    "empty": "",
    "not JSON": "{",
    "not UTF-8": b"\xff\xfe{\x00",
    "a list": "[]",
    "a number": "3",
    "another kind": '{"kind": "x", "rows": []}',
    "no rows": '{"schema_version": 1, "kind": "spectralquant.gate", "provenance": {}}',
    "rows of text": '{"schema_version": 1, "kind": "spectralquant.gate", "provenance": {}, "rows": ["a"]}',
    "rows a table": '{"schema_version": 1, "kind": "spectralquant.gate", "provenance": {}, "rows": {"a": 1}}',
    "no provenance": '{"schema_version": 1, "kind": "spectralquant.gate", "rows": [{}]}',
    "another schema": '{"schema_version": 2, "kind": "spectralquant.gate", "provenance": {}, "rows": []}',
    "not a number": '{"schema_version": 1, "kind": "spectralquant.gate", "provenance": {}, "rows": [{"metric": "a", "value": NaN}]}',
    "too deep": "[" * 100_000,
    "huge number": "1" * 10_000,
    "empty profile": '{"schema_version": 1, "kind": "spectralquant.profile", "provenance": {}, "rows": [{}]}',
    "empty compare": '{"schema_version": 1, "kind": "spectralquant.compare", "provenance": {}, "rows": [{}]}',
}


@pytest.mark.parametrize("case", RESULTS)
@pytest.mark.parametrize("command", ["baseline", "current", "report", "profile"])
def test_a_malformed_results_file_is_one_line_and_exit_2(command, case, tmp_path, capsys):
    file = tmp_path / "r.json"
    file.write_bytes(text if isinstance(text := RESULTS[case], bytes) else text.encode())
    arguments = {
        "baseline": ["gate", "--baseline", file, "--current", BASELINE],
        "current": ["gate", "--baseline", BASELINE, "--current", file],
        "report": ["report", file, "--out", tmp_path / "page.html"],
        "profile": ["profile", "--show", file, "--quiet"],
    }[command]
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    assert len(said.splitlines()) == 1 and "Traceback" not in said
