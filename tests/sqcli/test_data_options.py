"""`--data` and `--file` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands_for_tests import said as sq
from test_commands import FAST


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    from pydoc_data import topics

    folder = tmp_path_factory.mktemp("texts")
    long = "".join(topics.topics[name] for name in sorted(topics.topics))
    rows = [{"messages": [{"role": "user", "content": long[i : i + 900]}]} for i in range(0, 120_000, 900)]
    (folder / "tickets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "manual.txt").write_text(long[120_000:])
    return folder


@pytest.fixture(scope="module")
def mixed(small_folder, texts) -> tuple[Path, dict]:
    out = texts / "mixed"
    data = ("--data", f"file:{texts}/tickets.jsonl=3", "--data", str(texts / "manual.txt"))
    done = sq("calibrate", "--model", small_folder, *data, *FAST, "--out", out, "--json", "-", "--quiet")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.mark.slow
def test_weights_are_recorded_with_hashes(mixed):
    text = json.loads(mixed[0].with_suffix(".json").read_text())["text"]
    assert text["source"].endswith("/manual.txt=1") and "tickets.jsonl=3 + " in text["source"]
    assert [s["weight"] for s in text["sources"]] == [3, 1]
    assert sum(s["tokens"] for s in text["sources"]) == text["tokens"] == 6 * 384
    assert text["sources"][0]["tokens"] in (4 * 384, 5 * 384)
    assert len({s["sha256"] for s in text["sources"]}) == 2
    assert mixed[1]["text"] == text


@pytest.mark.slow
def test_compare_knows_what_was_calibrated_on_in_other_company(mixed, small_folder, texts):
    common = ("compare", "turboquant", "--profile", mixed[0], "--model", small_folder, "--device", "cpu")
    done = sq(*common, "--data", f"file:{texts}/manual.txt", "--windows", 9999, "--context", "512", "--needle", 0)
    assert done.returncode == 2 and "of which the profile was calibrated on" in done.stderr
    assert "calibrated on 0;" not in " ".join(done.stderr.split())
    data = ("--data", f"file:{texts}/tickets.jsonl", "--data", f"file:{texts}/manual.txt=2")
    done = sq(*common, *data, "--quick", "--json", "-")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["provenance"]
    assert [(Path(s["source"]).name, s["weight"]) for s in facts["sources"]] == [
        ("tickets.jsonl", 1),
        ("manual.txt", 2),
    ]
    assert all(len(s["sha256"]) == 64 and s["tokens"] > 0 for s in facts["sources"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["file:{}/tickets.jsonl=0"], "must be a positive number"),
        (["file:{}/tickets.jsonl", "file:{}/tickets.jsonl=2"], "given twice"),
        (["file:{}/tickets.jsonl:body"], "there is no column body"),
        (["{}/nothing.jsonl"], "there is no such file"),
        (["file:{}/late.jsonl"], "row 3: column text holds a number"),
        (["builtin:pydoc", "file:{}/short.txt"], "short.txt gives"),
    ],
)
@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(small_folder, texts, tmp_path, data, message):
    (texts / "late.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": 5}')
    (texts / "short.txt").write_text("too short")
    arguments = [word for spec in data for word in ("--data", spec.format(texts))]
    done = sq("calibrate", "--model", small_folder, *arguments, *FAST, "--out", tmp_path / "p")
    assert done.returncode == 2 and message in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_configuration_file_may_name_one_text_or_several(small_folder, texts, tmp_path):
    for value in (f'"file:{texts}/manual.txt"', f'["file:{texts}/manual.txt", "builtin:stdlib=2"]'):
        (tmp_path / "c.toml").write_text(f'[calibrate]\ndata = {value}\ntarget = "ratio=10"\n')
        done = sq(
            "calibrate", "--config", tmp_path / "c.toml", "--model", small_folder, "--steps", 100000, "--window", 64
        )
        assert done.returncode == 2 and "tokens" in done.stderr, done.stderr


PROMPTS = {
    "latin.txt": ("Straße déjà vu".encode("latin-1"), "is not UTF-8 text (byte 4, line 1)"),
    "noise.bin": (bytes(range(256)) * 9, "not text but a binary file"),
    "page.pdf": (b"%PDF-1.7", "PDF document"),
    "table.parquet": (b"PAR1words", "not text but a parquet table"),
    "empty.txt": (b"", "is empty"),
    "": (b"", "is a folder"),
    "none.txt": (None, "There is no file"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_files_that_are_not_text(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("generate",) if name in ("latin.txt", "page.pdf", "none.txt") else ("pack", "--out", "x.sqkv")
    data, message = PROMPTS[name]
    if name and data is not None:
        (tmp_path / name).write_bytes(data)
    done = sq(*command, "--profile", tmp_path / "no", "--file", tmp_path / name)
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_prompt_in_utf_16_is_read(mixed, small_folder, tmp_path):
    (tmp_path / "p.txt").write_bytes("The pump stopped.".encode("utf-16"))
    (tmp_path / "q.txt").write_text("The pump stopped.")
    common = ("--profile", mixed[0], "--model", small_folder, "--device", "cpu", "--new-tokens", 4, "--json", "-")
    texts = [
        json.loads(sq("generate", "--file", tmp_path / n, *common).stdout)["rows"][0]["text"]
        for n in ("p.txt", "q.txt")
    ]
    assert texts[0] == texts[1]
