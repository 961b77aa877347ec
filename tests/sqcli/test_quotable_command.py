"""`--quotable` ends with 2 before any work; without it the result is written and says why it is not quotable."""

import functools
import json

import pytest
from commands_for_tests import said

from spectralquant.gate import simulation


@pytest.fixture(autouse=True)
def dirty(monkeypatch):
    """A tree that was changed after its commit."""
    monkeypatch.setenv("SQ_GIT_COMMIT", "a" * 40)
    monkeypatch.setenv("SQ_GIT_DIRTY", "1")


@pytest.mark.parametrize("words", [("study", "gate", "--out"), ("compare", "fp8", "--json")], ids=lambda w: w[0])
def test_a_changed_tree_is_refused(words, tmp_path):
    file = tmp_path / "r.json"
    done = said(*words, file, "--quotable")
    assert done.returncode == 2 and not file.exists()
    assert "could not be quoted: its code was changed after commit aaaaaaaaa. Commit your changes" in " ".join(
        done.stderr.split()
    )


def test_a_study_says_why_it_is_not_quotable(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "simulate", functools.partial(simulation.simulate, runs=20))
    monkeypatch.setattr("sys.argv", ["sq", "study", "gate"])  # a command, not a test, makes it
    file = tmp_path / "r.json"
    done = said("study", "gate", "--out", file)
    words = " ".join(done.stderr.split())
    assert done.returncode == 0 and "Not quotable: its code was changed after commit aaaaaaaaa." in words
    facts = json.loads(file.read_text())["provenance"]
    assert facts["quotable"] is False and facts["not_quotable"] == ["its code was changed after commit aaaaaaaaa"]
