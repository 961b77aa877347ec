"""A result without a command, or of a tree that is no clean commit, is not quotable and says why."""

import pytest
from begun_for_tests import nothing_begun  # noqa: F401

from spectralquant.errors import InputError
from spectralquant.origin.quotable import begin, marked, require_quotable_source
from spectralquant.provenance import provenance
from sqcli.quotable import quotable_note

CLEAN = {"command": "sq study gate --out x.json", "git_commit": "a" * 40, "git_dirty": False}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"command": None}, "no command made it"),
        ({"git_dirty": True}, "its code was changed after commit aaaaaaaaa"),
        ({"git_dirty": None}, "nothing tells whether"),
        ({"git_commit": None}, "nothing tells the commit"),
    ],
)
def test_each_fault_is_named(change, reason):
    facts = marked({**CLEAN, **change})
    assert facts["quotable"] is False and len(facts["not_quotable"]) == 1 and reason in facts["not_quotable"][0]


def test_a_clean_commit_and_a_command_are_enough():
    assert marked(CLEAN)["quotable"] is True and "not_quotable" not in marked(CLEAN)
    assert marked(CLEAN, "too few windows")["not_quotable"] == ["too few windows"]


def test_every_provenance_says_so(monkeypatch):
    monkeypatch.setenv("SQ_GIT_COMMIT", "d" * 40)
    monkeypatch.setenv("SQ_GIT_DIRTY", "1")
    facts = provenance()
    assert facts["quotable"] is False and any("changed after commit ddddddddd" in r for r in facts["not_quotable"])
    with pytest.raises(InputError, match=r"--quotable: .*changed after commit ddddddddd.*Commit your changes"):
        require_quotable_source()
    monkeypatch.setenv("SQ_GIT_DIRTY", "0")
    require_quotable_source()


def test_the_commands_say_it():
    from spectralquant.results.files import results_file

    result = results_file("doctor", [], marked({**CLEAN, "git_dirty": True}))
    assert quotable_note(result) == "Not quotable: its code was changed after commit aaaaaaaaa."
    assert quotable_note(results_file("doctor", [], marked(CLEAN))) is None


def test_a_tree_that_changes_while_a_command_runs_is_not_quotable(monkeypatch):
    monkeypatch.setenv("SQ_GIT_COMMIT", "d" * 40)
    monkeypatch.setenv("SQ_GIT_DIRTY", "0")
    begin(True)
    assert provenance()["git_dirty"] is False
    monkeypatch.setenv("SQ_GIT_COMMIT", "e" * 40)
    facts = provenance()
    assert (facts["git_commit"], facts["git_dirty"], facts["quotable"]) == ("d" * 40, True, False)
