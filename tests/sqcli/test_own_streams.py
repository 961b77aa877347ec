"""Data never goes into the pipe of the tables, and a packet that is wrong is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectralquant.errors import InputError, PacketError
from sqcli.loading.packet import reading_packet
from sqcli.refusals.streams import require_own_stream

REPORT = Path(__file__).resolve().parents[2] / "profiles/results/serving-hot-cpu.json"
SQ = [sys.executable, "-m", "sqcli"]


def run(*words, **options):
    return subprocess.run([*SQ, *map(str, words)], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("stream", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/2"])
@pytest.mark.parametrize("option", ["--json", "--csv", "--out"])
def test_a_name_of_the_tables_pipe_is_refused(tmp_path, option, stream):
    done = run("report", REPORT, option, stream, cwd=tmp_path)
    assert done.returncode == 2 and f"{option} {stream} is the pipe" in " ".join(done.stderr.split())
    assert ("--json - writes JSON alone" if option == "--json" else "Name a file") in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_json_alone_goes_there(tmp_path):
    done = run("report", REPORT, "--json", "-", "--quiet", "--out", tmp_path / "r.html")
    assert done.returncode == 0 and json.loads(done.stdout)["kind"] == "spectralquant.report"


def test_other_pipes_devices_and_files_are_written(tmp_path):
    read, write = os.pipe()
    try:
        for path in (Path(f"/dev/fd/{write}"), Path("/dev/null"), tmp_path / "new.json", Path("/dev/fd/987654")):
            require_own_stream(path, "--json", "--json")
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    "said, told",
    [
        ("The packet's header contradicts its size.", "x.sqkv: The packet's header contradicts its size. Fetch or make the packet again."),
        ("There is no packet file x.sqkv. Check the path.", "There is no packet file x.sqkv. Check the path."),
        ("A block is damaged. Make the packet again.", "x.sqkv: A block is damaged. Make the packet again."),
        (
            "These bytes are not a SpectralQuant packet (wrong magic number).",
            "x.sqkv: These bytes are not a SpectralQuant packet (wrong magic number). Name a file that `sq pack` wrote.",
        ),
    ],
)  # fmt: skip
def test_a_wrong_packet_has_its_name_and_a_way_out(said, told):
    with pytest.raises(PacketError) as refused, reading_packet(Path("x.sqkv")):
        raise PacketError(said)
    assert str(refused.value) == told


def test_inspect_names_a_packet_that_was_cut_off(tmp_path):
    file = tmp_path / "cut.sqkv"
    file.write_bytes(b"nothing like a packet" * 20)
    done = run("inspect", file)
    assert done.returncode == 2 and str(file) in done.stderr.replace("\n", "") and "sq pack" in done.stderr


def test_other_errors_pass():
    with pytest.raises(InputError, match=r"^other$"), reading_packet(Path("x.sqkv")):
        raise InputError("other")
