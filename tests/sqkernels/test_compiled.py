"""C sources: compiled once, found again, and why there is no library."""

import ctypes
import os
import stat

import pytest

from sqkernels.entropy import compiled

SOURCE = "int sq_answer(void) { return 42; }\n"
CAN = pytest.mark.skipif(
    os.name != "posix" or not any(map(compiled.shutil.which, ("cc", "gcc", "clang"))), reason="no compiler"
)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPECTRALQUANT_COMPILE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    compiled.library.cache_clear()
    (tmp_path / "answer.c").write_text(SOURCE)
    yield tmp_path / "answer.c"
    compiled.library.cache_clear()


def again(source):
    """As another process would find it."""
    compiled.library.cache_clear()
    return compiled.library(source)


def kept(source, suffix=".so"):
    return [p for p in (source.parent / "cache" / "compiled").iterdir() if p.suffix == suffix]


def command(folder, name, script):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


@CAN
def test_a_source_is_compiled_once(source, monkeypatch):
    assert compiled.library(source).sq_answer() == 42
    monkeypatch.setattr(compiled.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert again(source).sq_answer() == 42
    assert len(kept(source)) == len(kept(source, ".sha256")) == len(kept(source, "")) + 1 == 1


@CAN
def test_another_source_is_another_library(source):
    assert compiled.library(source).sq_answer() == 42
    source.write_text(SOURCE.replace("42", "43"))
    assert again(source).sq_answer() == 43


@CAN
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"no library at all",
        lambda data: b"",
        lambda data: data[: len(data) // 2],  # loading it would end the process (SIGBUS)
        lambda data: data[:4096] + bytes([data[4096] ^ 1]) + data[4097:],
    ],
    ids=["garbage", "empty", "cut short", "a bit"],
)
def test_a_damaged_library_is_compiled_again(source, damage):
    source.write_text("int sq_other(void) { return 7; }\n")
    assert isinstance(compiled.library(source), ctypes.CDLL)
    whole = kept(source)[0].read_bytes()
    file = kept(source)[0]
    file.unlink()  # the loaded one must not change below this process
    file.write_bytes(damage(whole))
    assert again(source).sq_other() == 7 and file.read_bytes() == whole


@CAN
@pytest.mark.parametrize("text", [None, "", "of another"])
def test_a_library_whose_hash_is_not_known_is_compiled_again(source, text):
    """As those of earlier versions, which kept none."""
    compiled.library(source)
    noted = kept(source, ".sha256")[0]
    noted.unlink() if text is None else noted.write_text(text)
    assert again(source).sq_answer() == 42 and len(kept(source, ".sha256")[0].read_text()) == 64


@CAN
def test_a_library_that_cannot_be_loaded_here_is_compiled_again(source):
    """Whole, and its hash beside it, but of another machine."""
    compiled.library(source)
    file = kept(source)[0]
    file.unlink()
    file.write_bytes(b"\x7fELF of another machine")
    kept(source, ".sha256")[0].write_text(compiled._sha256(file))
    assert again(source).sq_answer() == 42


@CAN
def test_a_compiler_that_fails_is_quoted(source):
    source.write_text("int broken(\n")
    why = compiled.library(source)
    assert isinstance(why, compiled.NotCompiledError) and "failed: " in str(why) and "error" in str(why)
    assert not list((source.parent / "cache" / "compiled").iterdir())


@CAN
@pytest.mark.parametrize(
    ("cc", "said"),
    [
        ("/nonexistent/cc", "CC=/nonexistent/cc is not on the PATH"),
        ("no-such-compiler -O1", "CC=no-such-compiler -O1 is not on the PATH"),
        ("false", "false failed: exit status 1, without a word"),
        ("true", "true failed: exit status 0, but what it wrote is no library"),
        ("'gcc", "is not on the PATH"),
    ],
)
def test_a_cc_that_cannot_be_used_is_told_and_another_compiles(source, monkeypatch, cc, said):
    monkeypatch.setenv("CC", cc)
    with pytest.warns(UserWarning, match="compiled answer.c") as told:
        assert compiled.library(source).sq_answer() == 42
    assert said in str(told[0].message)


@pytest.mark.parametrize(
    ("cc", "said"),
    [("nothing", "CC=nothing is not on the PATH; no C compiler (cc, gcc or clang) on the PATH"), ("", "no C compiler")],
)
def test_without_any_every_reason_is_told(source, monkeypatch, cc, said):
    monkeypatch.setenv("CC", cc)
    monkeypatch.setenv("PATH", str(source.parent))
    assert str(compiled.library(source)).startswith(said)


def test_a_cc_that_fails_is_told_where_there_is_no_other(source, monkeypatch):
    cc = command(source.parent, "mine", "echo out of order; exit 3")
    monkeypatch.setenv("CC", cc)
    monkeypatch.setenv("PATH", str(source.parent))
    assert f"{cc} failed: out of order" in str(compiled.library(source))


@CAN
def test_a_cc_with_options_is_used_and_nothing_is_told(source, monkeypatch, recwarn):
    real = next(filter(None, map(compiled.shutil.which, ("cc", "gcc", "clang"))))
    log = source.parent / "log"
    cc = command(source.parent, "mine", f'echo "$@" >> {log}; exec {real} "$@"')
    monkeypatch.setenv("CC", f"{cc} -DSQ_MINE")
    assert compiled.library(source).sq_answer() == 42 and compiled.compiler_missing() is None
    assert log.read_text().startswith("-DSQ_MINE -O3") and not recwarn.list


@pytest.mark.parametrize("value", ["0", "no", "False", " OFF "])
def test_it_can_be_forbidden(source, monkeypatch, value):
    monkeypatch.setenv("SPECTRALQUANT_COMPILE", value)
    assert str(compiled.library(source)) == f"SPECTRALQUANT_COMPILE={value} forbids it"
    assert not (source.parent / "cache").exists()


@CAN
@pytest.mark.parametrize("value", ["", "1", "Yes", "true", "on"])
def test_it_can_be_allowed_by_name(source, monkeypatch, value):
    monkeypatch.setenv("SPECTRALQUANT_COMPILE", value)
    assert compiled.library(source).sq_answer() == 42


def test_a_word_that_is_neither_is_not_guessed(source, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_COMPILE", "nope")
    assert "SPECTRALQUANT_COMPILE=nope is neither on (1, yes, true, on) nor off" in str(compiled.library(source))


@CAN
def test_a_cache_that_cannot_be_written_is_said(source):
    (source.parent / "cache").write_text("a file where the folder should be")
    assert isinstance(compiled.library(source), compiled.NotCompiledError)
