"""The README's figures are those of the results files, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sqcli.render import notes
from sqcli.render.readme import NOTES, render

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_every_figure_block_is_up_to_date():
    assert render(README) == README, "run `make readme`"


@pytest.mark.parametrize("path", NOTES, ids=lambda p: p.parent.name)
def test_every_figure_block_of_the_notes_is_up_to_date(path):
    text = path.read_text()
    assert render(text, notes.BLOCKS) == text, "run `make readme`"
    assert text.count("\n1. ") + text.count("\n2. ") + text.count("\n3. ") >= 3, "three things that did not help"


def test_local_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README)
    for target in filter(None, (a or b for a, b in targets)):
        assert target.startswith("mailto:") or (ROOT / target).exists(), target


def test_commands_named_in_the_readme_exist():
    import typer

    from sqcli.app import app

    known = set(typer.main.get_command(app).commands)
    for command in re.findall(r"^\s*(?:\.venv/bin/)?sq ([a-z]+)", README, re.MULTILINE):
        assert command in known, command
