"""A page does not replace a file of another kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands_for_tests import sq

RESULTS = Path(__file__).resolve().parents[2] / "profiles/results"


@pytest.mark.parametrize(
    "command",
    [
        ["report", RESULTS / "headline.json", "--out"],
        ["show", "x", "--html"],
        ["profile", "--show", RESULTS / "profile-h100.json", "--html"],
        ["compare", "turboquant", "--html"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("name", ["profile.json", "profile.SAFETENSORS", "packet.sqkv"])
def test_the_name_of_another_kind_is_refused(command, name, tmp_path, capsys):
    file = tmp_path / name
    file.write_bytes(b"of a profile")
    assert sq(*command, file) == 2
    assert "a page is HTML. Name it .html." in " ".join(capsys.readouterr().err.split())
    assert file.read_bytes() == b"of a profile"
