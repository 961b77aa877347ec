"""The command line as a user meets it: output, files, exit codes, wrong input, speed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands_for_tests import process
from commands_for_tests import said as sq
from safetensors import safe_open

SQ = [sys.executable, "-m", "sqcli.app"]
FAST = [
    "--steps",
    "6",
    "--window",
    "384",
    "--held-out",
    "1",
    "--held-out-window",
    "512",
    "--target",
    "ratio=10",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def profile(small_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "first"
    done = sq(
        "calibrate",
        "--model",
        small_folder,
        *FAST,
        "--out",
        out,
        "--json",
        out.with_suffix(".result.json"),
        "--csv",
        out.with_suffix(".csv"),
        "--svg",
        out.with_suffix(".svg"),
    )
    assert done.returncode == 0, done.stderr
    assert (
        "smaller at KL" in done.stdout.splitlines()[0]
        and "aimed at 10.0:1" in done.stdout
        and "Next:" in done.stdout
        and "Rank (of 16)" in done.stdout
    )
    return out


@pytest.fixture(scope="module")
def second(small_folder, profile) -> Path:
    out = profile.with_name("second")
    done = sq(
        "calibrate", "--model", small_folder, "--data", "builtin:stdlib", *FAST, "--out", out, "--quiet", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"]["source"] == "builtin:stdlib"
    assert done.stderr == ""
    return out


@pytest.mark.slow
def test_calibrate_writes_results_with_provenance(profile):
    result = json.loads(profile.with_suffix(".result.json").read_text())
    assert result["schema_version"] == 1
    assert {"command", "versions", "git_commit", "git_dirty", "device", "stages_s"} <= result["provenance"].keys()
    assert result["rows"][0]["kl_nats"] > 0 and len(result["layers"]) == 3
    assert "payload_ratio" in profile.with_suffix(".csv").read_text().splitlines()[0]
    assert "<svg" in profile.with_suffix(".svg").read_text()


def test_tables_fit_80_columns_when_piped(profile):
    for arguments in (("show", profile), ("show", profile, "--layer", 1), ("show", profile, "--layer", 1, "--head", 0)):
        done = sq(*arguments)
        assert done.returncode == 0
        assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_show_json_has_one_row_a_head(profile):
    rows = json.loads(sq("show", profile, "--json", "-", "--quiet").stdout)["rows"]
    assert len(rows) == 3 * 2 * 2 and rows[0]["rank"] <= 16


@pytest.mark.slow
def test_show_page_is_self_contained(profile, second):
    page = profile.with_suffix(".html")
    assert sq("show", profile, "--diff", second, "--html", page).returncode == 0
    text = page.read_text()
    assert text.count("<svg") >= 10
    assert "http" not in text and "<script" not in text and "src=" not in text


def test_show_diff_compares_domains(profile, second):
    done = sq("show", profile, "--diff", second)
    assert "builtin:pydoc against builtin:stdlib" in done.stdout and "mean key rank" in done.stdout


def test_config_file_gives_defaults_and_flags_win(profile, small_folder, tmp_path):
    config = tmp_path / "sq.toml"
    config.write_text(f'[calibrate]\nmodel = "{small_folder}"\nsteps = 0\n')
    done = sq("calibrate", "--config", config, "--out", tmp_path / "x")
    assert done.returncode == 2 and "--steps 0" in done.stderr
    config.write_text("[calibrate]\nstepz = 3\n")
    done = sq("calibrate", "--config", config)
    assert done.returncode == 2 and "no option 'stepz'" in done.stderr


WRONG = {
    "no such model folder": (["--model", "./nowhere"], "no model folder"),
    "unknown built-in": (["--model", "builtin:smollm"], "Did you mean 'builtin:smollm2-135m'"),
    "no such file": (["--data", "file:/nowhere.txt"], "no file /nowhere.txt"),
    "forgotten prefix, too little text": (["--data", __file__, "--steps", "999"], "999 windows of 512"),
    "no steps": (["--steps", "0"], "at least one step"),
    "short window": (["--window", "64"], "Use at least 384"),
    "bad target": (["--target", "ration=3"], "Did you mean 'ratio'"),
    "target out of range": (["--target", "ratio=-3"], "at least 1.5, and 1000 at most"),
    "bad metric": (["--metric", "fischer"], "Did you mean 'fisher'"),
    "bad tier": (["--tier", "lukewarm"], "is not one of cold, warm, hot"),
    "bad device": (["--device", "gpu"], "not one of auto, cpu, cuda"),
    "bad dtype": (["--dtype", "fp32"], "not one of auto"),
    "unknown option": (["--stepz", "3"], "No such option"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.slow
def test_wrong_input_is_one_clear_message_and_exit_2(case, small_folder, tmp_path):
    arguments, message = WRONG[case]
    model = [] if "--model" in arguments else ["--model", str(small_folder)]
    done = sq("calibrate", *model, *arguments, "--out", tmp_path / "p")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content, message",
    [("", "is empty"), (" \n ", "text is empty"), ("too short", "Give more text")],
    ids=["empty", "blank", "short"],
)
@pytest.mark.slow
def test_text_that_is_not_enough(small_folder, tmp_path, content, message):
    text = tmp_path / "t.txt"
    text.write_text(content)
    done = sq("calibrate", "--model", small_folder, "--data", f"file:{text}", "--out", tmp_path / "p")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_network_is_one_clear_message(tmp_path, monkeypatch):
    env = {
        "SPECTRALQUANT_CACHE": str(tmp_path),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_NO_INDEX": "",
        "PIP_FIND_LINKS": "",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_CONFIG_FILE": os.devnull,
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    done = sq("calibrate", "--out", tmp_path / "p")
    assert done.returncode == 2 and "could not be fetched" in done.stderr and "Traceback" not in done.stderr
    done = sq("calibrate", "--offline", "--out", tmp_path / "p")
    assert done.returncode == 2 and "--offline forbids" in done.stderr


@pytest.mark.slow
def test_damaged_profiles_are_refused(profile, tmp_path):
    for suffix in (".json", ".safetensors"):
        shutil.copy(profile.with_suffix(suffix), tmp_path / f"p{suffix}")
    side = tmp_path / "p.json"
    original = side.read_text()
    for text, message in (
        (original[:-20], "is not JSON"),
        ("{}", "not a SpectralQuant profile"),
        (original.replace('"schema_version": 1', '"schema_version": 9'), "profile schema 9"),
        (original.replace('"layers": 3', '"layers": "x"'), "model.layers"),
    ):
        side.write_text(text)
        done = sq("show", side)
        assert done.returncode == 2 and message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    side.write_text(original)
    with (tmp_path / "p.safetensors").open("ab") as handle:
        handle.write(b"x")
    done = sq("show", side)
    assert done.returncode == 2 and "does not match its sidecar" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written(small_folder, tmp_path):
    """A file size limit fails the write as a full disk does."""
    limited = f"ulimit -f 100; exec {' '.join(SQ)} calibrate --model {small_folder} {' '.join(FAST)} --out {tmp_path}/p"
    done = subprocess.run(["bash", "-c", f"trap '' XFSZ; {limited}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Cannot write" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["state.json"]


@pytest.mark.slow
def test_ctrl_c_keeps_finished_work_and_says_how_to_go_on(small_folder, tmp_path):
    command = [
        *SQ,
        "calibrate",
        "--model",
        str(small_folder),
        "--steps",
        "80",
        "--window",
        "384",
        "--held-out",
        "1",
        "--held-out-window",
        "512",
        "--target",
        "ratio=10",
        "--out",
        str(tmp_path / "p"),
    ]
    # A shell's background job ignores SIGINT and hands that down; a user's terminal does not.
    started = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = tmp_path / "p.partial" / "state.json"
    end = time.monotonic() + 120
    while not state.exists() and time.monotonic() < end and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, stderr = started.communicate(timeout=60)
    assert started.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "with --resume goes on" in stderr or "the same command begins anew" in stderr
    assert state.exists() and not (tmp_path / "p.json").exists()
    done = sq(*command[len(SQ) :], "--resume", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not state.exists() and (tmp_path / "p.json").exists()


def processor_time(command: list) -> float:
    """Seconds of processor time of a command: its wall time on an idle machine, and steadier on a busy one."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert subprocess.run([str(word) for word in command], capture_output=True, check=False).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_and_show_are_quick(profile):
    """On a slow or shared processor: in at most twice what the libraries take that every help needs."""
    libraries = [sys.executable, "-c", "import typer.rich_utils"]
    times = [(processor_time(libraries), processor_time([*SQ, "--help"])) for _ in range(6)]
    needed, help_itself = (min(column) for column in zip(*times, strict=True))
    assert help_itself < max(0.3, 2 * needed), times
    assert min(processor_time([*SQ, "show", profile]) for _ in range(2)) < max(2.0, 12 * needed)


@pytest.mark.parametrize("command", [["--help"], ["calibrate", "--help"], ["compare", "--no-such"]])
def test_help_loads_nothing_that_computes(command):
    code = f"import sys; sys.argv = ['sq', *{command!r}]\ntry:\n    from sqcli.app import main; main()\nfinally:\n    print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    loaded = set(done.stdout.split())
    assert "typer" in loaded and not loaded & {
        "torch",
        "numpy",
        "transformers",
        "triton",
        "datasets",
        "matplotlib",
    }


def test_no_color_is_respected(profile):
    assert "\x1b[" not in process("show", profile, env={"NO_COLOR": "1"}).stdout


def test_doctor_reports_every_line_with_a_fix():
    done = sq("doctor", "--json", "-", "--quiet")
    rows = {r["check"]: r for r in json.loads(done.stdout)["rows"]}
    assert rows["torch"]["status"] == "ok" and rows["Triton smoke test"]["status"] in {"ok", "warn"}
    assert all(r["fix"] for r in rows.values() if r["status"] != "ok")
    assert done.returncode == int(any(r["status"] == "fail" for r in rows.values()))


@pytest.fixture(scope="module")
def packet(profile, small_folder) -> Path:
    out = profile.with_name("prompt.sqkv")
    prompt = profile.with_name("prompt.txt")
    prompt.write_text("The import statement binds names in the local namespace. " * 40)
    done = sq(
        "pack", "--profile", profile, "--model", small_folder, "--file", prompt, "--out", out, "--max-tokens", 700
    )
    assert done.returncode == 0, done.stderr
    assert "payload ratio" in done.stdout and "Nothing is compressed" not in done.stderr
    return out


def test_a_packet_that_compresses_nothing_says_so(profile, small_folder, tmp_path):
    few = tmp_path / "few.sqkv"
    done = sq("pack", "a few words", "--profile", profile, "--model", small_folder, "--out", few)
    assert done.returncode == 0 and "Nothing is compressed" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_pack_inspect_unpack(packet, profile, small_folder, tmp_path):
    row = json.loads(sq("inspect", packet, "--json", "-", "--quiet").stdout)["rows"][0]
    assert row["tokens"] == 700 and row["bytes"] == packet.stat().st_size
    done = sq(
        "unpack",
        packet,
        "--profile",
        profile,
        "--model",
        small_folder,
        "--out",
        tmp_path / "kv.safetensors",
        "--then",
        " and",
        "--new-tokens",
        5,
        "--json",
        tmp_path / "r.json",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kv.safetensors").stat().st_size > 700 * 2 * 96 * 4
    assert isinstance(json.loads((tmp_path / "r.json").read_text())["rows"][0]["continuation"], str)


def test_inspect_of_a_profile_lists_its_tensors(profile):
    done = sq("inspect", profile)
    with safe_open(profile.with_suffix(".safetensors"), framework="pt") as stored:
        names = list(stored.keys())
    assert done.returncode == 0 and len(names) > 20
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert set(names) <= listed


@pytest.mark.slow
def test_damaged_packets_and_foreign_profiles_are_refused(packet, profile, second, small_folder, tmp_path):
    damaged = tmp_path / "d.sqkv"
    data = bytearray(packet.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    for arguments, message in (
        (["inspect", damaged], "is damaged (checksum)"),
        (["inspect", tmp_path / "none.sqkv"], "no packet file"),
        (["unpack", packet, "--profile", second, "--model", small_folder], "Use the profile that packed it"),
        (["unpack", damaged, "--profile", profile, "--model", small_folder], "is damaged (checksum)"),
        (["pack", "--profile", profile, "--out", tmp_path / "x"], "Give either a prompt or --file"),
        (["pack", " ", "--profile", profile, "--out", tmp_path / "x"], "nothing to pack"),
    ):
        done = sq(*arguments)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_profile_budget_is_kept(profile, small_folder, tmp_path):
    full = profile.with_suffix(".safetensors").stat().st_size
    budget = int(full * 0.6)
    done = sq(
        "calibrate",
        "--model",
        small_folder,
        *FAST,
        "--profile-budget",
        f"{budget / 1000:.0f}KB",
        "--out",
        tmp_path / "b",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.safetensors").stat().st_size <= budget
    done = sq("calibrate", "--model", small_folder, *FAST, "--profile-budget", "21KB", "--out", tmp_path / "c")
    assert done.returncode == 2 and "smallest" in done.stderr
    done = sq("calibrate", "--model", small_folder, "--profile-budget", "large", "--out", tmp_path / "c")
    assert done.returncode == 2 and "as in 20MB" in done.stderr


@pytest.mark.slow
def test_study_writes_one_results_file(small_folder, tmp_path):
    out = tmp_path / "r.json"
    done = sq("study", "domains", "--model", small_folder, "--steps", 4, "--window", 384, "--windows", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert len(result["rows"]) == 24 and len(result["table"]) == 8 and "adaptive" in done.stdout
    done = sq("study", "could", "--out", out)
    assert done.returncode == 2 and "Did you mean 'cold'" in done.stderr
