"""C sources: compiled once, found again, and why there is no library."""

import os

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
    compiled.library.cache_clear()
    yield tmp_path / "answer.c"
    compiled.library.cache_clear()


@CAN
def test_a_source_is_compiled_once(source, monkeypatch):
    source.write_text(SOURCE)
    assert compiled.library(source).sq_answer() == 42
    compiled.library.cache_clear()
    monkeypatch.setattr(compiled.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert compiled.library(source).sq_answer() == 42
    assert [p.suffix for p in (source.parent / "cache" / "compiled").iterdir()] == [".so"]


@CAN
def test_another_source_is_another_library(source):
    source.write_text(SOURCE)
    assert compiled.library(source).sq_answer() == 42
    compiled.library.cache_clear()
    source.write_text(SOURCE.replace("42", "43"))
    assert compiled.library(source).sq_answer() == 43


@CAN
def test_a_compiler_that_fails_is_quoted(source):
    source.write_text("int broken(\n")
    why = compiled.library(source)
    assert isinstance(why, compiled.NotCompiledError) and "error" in str(why)
    assert not list((source.parent / "cache" / "compiled").iterdir())


@pytest.mark.parametrize(("name", "value", "says"), [("SPECTRALQUANT_COMPILE", "0", "forbids"), ("PATH", "", "PATH")])
def test_why_there_is_none(source, monkeypatch, name, value, says):
    source.write_text(SOURCE)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(name, value)
    why = compiled.library(source)
    assert isinstance(why, compiled.NotCompiledError) and says in str(why)


@CAN
def test_a_cache_that_cannot_be_written_is_said(source, monkeypatch):
    source.write_text(SOURCE)
    (source.parent / "cache").write_text("a file where the folder should be")
    assert isinstance(compiled.library(source), compiled.NotCompiledError)
