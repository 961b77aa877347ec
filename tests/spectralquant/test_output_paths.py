"""Where files are written: through links, into devices and pipes without replacing them, and never where it cannot be."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from spectralquant.claims import claimed
from spectralquant.errors import InputError
from spectralquant.files import require_writable, write_text


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_device_stays_one():
    for _ in range(2):
        with claimed("/dev/null", "--json"):
            write_text("/dev/null", "nothing")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert not list(Path("/dev").glob(".null*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_said_and_stays_one():
    with pytest.raises(InputError, match="No space left"):
        write_text("/dev/full", "much")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_pipe_gets_the_whole_content():
    os.mkfifo("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_text()))
    reader.start()
    require_writable("pipe", "--out")
    write_text("pipe", "x" * 200_000)
    reader.join(timeout=20)
    assert got == ["x" * 200_000] and stat.S_ISFIFO(os.stat("pipe").st_mode)


def test_links_are_followed_and_stay():
    Path("far").mkdir()
    os.symlink("far/target.json", "link.json")  # leads to nothing yet
    os.symlink("far/new", "folder")
    for text in ("first", "second"):
        with claimed("link.json", "--out"):
            write_text("link.json", text)
        assert Path("link.json").is_symlink() and Path("far/target.json").read_text() == text
    with claimed("folder/x.json", "--out"):
        write_text("folder/x.json", "there")
    assert Path("far/new/x.json").read_text() == "there"
    assert sorted(p.name for p in Path("far").rglob("*")) == ["new", "target.json", "x.json"]


@pytest.mark.parametrize("path", ["circle", "circle/x", "circle/y/x", "socket"])
def test_what_is_no_file_is_refused_before_any_work(path):
    os.symlink("other", "circle")
    os.symlink("circle", "other")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        before = sorted(os.listdir())
        with pytest.raises(InputError, match=r"--out .* cannot be written: "), claimed(path, "--out"):
            pass
        with pytest.raises(InputError, match="Cannot write"):
            write_text(path, "x")
        assert sorted(os.listdir()) == before


def test_an_open_stream_that_leads_to_a_file_is_refused():
    with open("file", "w") as file:
        name = f"/dev/fd/{file.fileno()}"
        with pytest.raises(InputError, match="that file's name would do"):
            require_writable(name, "--json")
        with pytest.raises(InputError, match="that file's name would do"):
            write_text(name, "x")
    assert Path("file").read_text() == ""


@pytest.mark.parametrize("path", ["file/x", "file/y/x"])
def test_a_file_where_a_folder_should_be_is_named(path):
    Path("file").write_text("")
    with pytest.raises(InputError, match="file is not a folder"):
        require_writable(path, "--out")
    with pytest.raises(InputError, match="Cannot write"):
        write_text(path, "x")
