"""The folder for a machine without a network: complete, or refused with what is missing."""

from __future__ import annotations

import platform
import zipfile

import pytest

from research.headline.texts import PACKAGED
from research.quality.texts import TEXTS
from research.results import commands, offline
from spectralquant.files import cache_folder, write_text
from spectralquant.models.builtin.table import BUILTIN_MODELS


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache in which all texts lie, and of each model its configuration."""
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "mine"))
    monkeypatch.setattr(commands, "LEAST", 5)
    for name in PACKAGED:
        write_text(cache_folder() / "texts" / f"{name}.txt", name)
    for text in TEXTS:
        write_text(cache_folder() / "texts" / "quality" / f"{text.name}.txt", text.name)
    for model in BUILTIN_MODELS.values():
        write_text(cache_folder() / "models" / model.name / "config.json", "{}")
    return tmp_path


def test_a_folder_is_a_cache_of_its_own(cache, capsys):
    (cache / "wiki").write_text("some text")
    assert offline.main([str(cache / "there"), "--text", str(cache / "wiki"), "--offline"]) == 0
    mine, there = (
        {p.relative_to(f) for f in [root] for p in f.rglob("*.*")}
        for root in (cache / "mine", cache / "there" / "cache")
    )
    assert mine == there and (cache / "there" / "wiki.test.raw").read_text() == "some text"
    said = capsys.readouterr().out
    assert "SPECTRALQUANT_CACHE=there/cache" in said and "--text there/wiki.test.raw" in said and "wheels" not in said
    (cache / "mine" / "texts" / "french.txt").write_text("more")
    assert offline.main([str(cache / "there"), "--offline"]) == 0
    assert (cache / "there" / "cache" / "texts" / "french.txt").read_text() == "more"


def test_what_is_missing_is_told(cache, capsys):
    assert offline.main([str(cache / "there"), "--text", str(cache / "none"), "--offline"]) == 2
    assert "is not there" in capsys.readouterr().err
    (cache / "mine" / "texts" / "french.txt").unlink()
    assert offline.main([str(cache / "there"), "--offline"]) == 2
    assert "developers-reference-fr" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused(cache, monkeypatch, capsys):
    (cache / "there").write_text("x")
    assert offline.main([str(cache / "there"), "--offline"]) == 2
    assert "Give another folder" in capsys.readouterr().err
    (cache / "other").mkdir()
    (cache / "other" / "wheels").write_text("x")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert offline.main([str(cache / "other"), "--offline", "--wheel", "one==1.0"]) == 2
    assert "Give another folder" in capsys.readouterr().err
    for name in ("", "-r x", "one", "one==1.0 x"):
        assert offline.main([str(cache / "other"), "--offline", f"--wheel={name}"]) == 2
        assert "not a package and its version" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--text", "empty"], "has 2 characters"),
        (["--text", "binary"], "cannot be read as UTF-8"),
        (["--python", "3.12"], "--python does nothing without --wheel"),
        (["--wheel", "one==1.0"], "--offline forbids it"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(cache, monkeypatch, capsys, words, said):
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.chdir(cache)
    (cache / "empty").write_text(" \n")
    (cache / "binary").write_bytes(bytes(range(256)))
    assert offline.main(["there", "--offline", *words]) == 2
    assert said in capsys.readouterr().err and not (cache / "there").exists()


@pytest.mark.parametrize("words", [[""], ["there", "--python", "9.9"], ["there", "--python", "new"]])
def test_words_of_the_wrong_kind_are_refused(cache, capsys, words):
    with pytest.raises(SystemExit) as ended:
        offline.main([*words, "--offline"])
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_a_name_with_a_space_is_quoted(cache, capsys):
    assert offline.main([str(cache / "over there"), "--offline"]) == 0
    assert "SPECTRALQUANT_CACHE='over there'/cache" in capsys.readouterr().out


def wheel_of(folder, name, tag):
    """An empty package's wheel."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: torch\n",
        )
        archive.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")


def test_wheels_of_another_python(cache, monkeypatch, capsys):
    """pip takes that Python's wheels alone, nothing that they need, and its refusal is told."""
    wheel_of(cache / "index", "one", f"cp312-cp312-manylinux_2_28_{platform.machine()}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache / "index"))
    some = [str(cache / "there"), "--offline", "--wheel", "one==1.0"]
    assert offline.main([*some, "--python", "3.12"]) == 0
    assert [file.name[:9] for file in (cache / "there" / "wheels").iterdir()] == ["one-1.0-c"]
    assert "there/wheels/*.whl" in capsys.readouterr().out
    assert offline.main([*some, "--python", "3.13"]) == 2
    assert "no wheel of one==1.0 for Python 3.13" in capsys.readouterr().err
