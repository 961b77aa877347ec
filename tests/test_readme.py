"""The figures of README and docs are those of the results files, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from research.readme import notes, picture
from research.readme.write import BLOCKS, NOTES, PAGES, render

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PLANNING = re.compile(r"\bbar \d|\bbar\b|\bbars\b|moonshot|seed's claim", re.IGNORECASE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_figure_block_is_up_to_date(path):
    assert render(path.read_text()) == path.read_text(), "run `make readme`"


def test_the_picture_is_up_to_date():
    """Its words: how a library draws them may change with its version."""
    words = lambda svg: re.findall(r"<text[^>]*>([^<]*)</text>", svg)  # noqa: E731
    drawn = words(picture.picture())
    assert len(drawn) > 100 and drawn == words(picture.FILE.read_text()), "run `make readme`"
    assert {file.name for file in picture.FILE.parent.iterdir()} == {picture.FILE.name}


def test_every_block_stands_on_some_page():
    shown = {name for path in PAGES for name in re.findall(r"<!-- ([a-z-]+) -->", path.read_text())}
    assert shown == set(BLOCKS)


@pytest.mark.parametrize("path", NOTES, ids=lambda p: p.parent.name)
def test_every_figure_block_of_the_notes_is_up_to_date(path):
    text = path.read_text()
    assert render(text, notes.BLOCKS) == text, "run `make readme`"
    assert text.count("\n1. ") + text.count("\n2. ") + text.count("\n3. ") >= 3, "three things that did not help"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_local_links_and_pictures_exist(path):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", path.read_text())
    for target in filter(None, (a or b for a, b in targets)):
        assert "://" in target or target.startswith("mailto:") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_planning_words(path):
    assert not PLANNING.search(path.read_text())


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_named_exist(path):
    from sqcli.root import command_line

    known = set(command_line().commands)
    for command in re.findall(r"^\s*(?:\.venv/bin/)?sq ([a-z-]+)", path.read_text(), re.MULTILINE):
        assert command in known, command
