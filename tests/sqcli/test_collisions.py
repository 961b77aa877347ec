"""No output replaces an input of its command, or another output."""

from __future__ import annotations

import os

import pytest

from spectralquant.errors import InputError
from sqcli.collisions import require_apart
from sqcli.root import run

TEXT = "Some words. "
FILES = ("prompt.txt", "p.json", "p.safetensors", "q.json", "a.sqkv", "r.json", "b.json", "l.toml", "rows.jsonl")
CASES = {
    "pack over its prompt": "pack --profile p --file prompt.txt --out prompt.txt",
    "pack over its profile": "pack --profile p --file prompt.txt --out p.safetensors",
    "pack's results over its packet": "pack --profile p --file prompt.txt --out new.sqkv --json new.sqkv",
    "unpack over the packet": "unpack a.sqkv --profile p --out a.sqkv",
    "show over the profile": "show p --json p.json",
    "show over the other profile": "show p --diff q --html q.json",
    "inspect over the packet": "inspect a.sqkv --csv a.sqkv",
    "inspect over the profile": "inspect p.safetensors --json p.json",
    "report over its results": "report r.json b.json --out b.json",
    "a shown profile over itself": "profile --show r.json --json r.json",
    "gate over its current": "gate --baseline b.json --current r.json --json r.json",
    "gate over its baseline": "gate --baseline b.json --current r.json --junit b.json",
    "gate over its limits": "gate --baseline b.json --current r.json --limits l.toml --markdown l.toml",
    "generate over its prompt": "generate --file prompt.txt --tier exact --json prompt.txt",
    "calibrate's results over its profile": "calibrate --out new --json new.json",
    "a plan over a profile": "calibrate --dry-run --out p --json p.json",
    "calibrate over its text": "calibrate --data file:rows.jsonl:text=2 --out new --csv rows.jsonl",
    "compare over its text": "compare fp8 --profile p --data rows.jsonl --json rows.jsonl",
    "two outputs": "doctor --json same --csv same",
}


@pytest.mark.parametrize("line", CASES.values(), ids=CASES)
def test_refused_and_nothing_is_lost(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text(TEXT)
    with pytest.raises(InputError, match=r"is also a file of"):
        run(line.split())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(FILES, TEXT)


def test_links_name_the_same_file(tmp_path):
    target, soft, hard = tmp_path / "a", tmp_path / "soft", tmp_path / "hard"
    target.write_text(TEXT)
    soft.symlink_to(target)
    os.link(target, hard)
    for other in (soft, hard, tmp_path / "." / "a"):
        with pytest.raises(InputError, match=r"--json .* is also a file of --file"):
            require_apart({"--json": other}, {"--file": target})


def test_what_cannot_be_lost_is_accepted():
    require_apart({"--json": "/dev/null", "--csv": "/dev/null"}, {"--file": "/dev/null"})


def test_results_beside_a_packet_do_not_make_it_a_profile(tmp_path):
    (tmp_path / "a.sqkv").write_bytes(b"\0" * 80)
    (tmp_path / "a.sqkv.json").write_text("{}")
    with pytest.raises(Exception, match="not a SpectralQuant packet"):
        run(["inspect", str(tmp_path / "a.sqkv")])


def test_a_first_gate_names_the_way_to_a_baseline(tmp_path):
    with pytest.raises(InputError, match="--update-baseline"):
        run(["gate", "--run", "smoke", "--baseline", str(tmp_path / "base.json")])
