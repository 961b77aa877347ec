"""Every results file is of this history and this code, or is listed as stale with the reason."""

import json
import subprocess

import pytest

from research.results.stale import LIST, RESULTS, History, listed, stale_files, why_stale, written
from spectralquant.origin.used_code import digest, folded

HINT = "run `python -m research.results.stale --write && make readme`, or make the file anew"


def test_stale_files_are_listed_and_fresh_ones_are_not():
    history = History()
    found, admitted = stale_files(history=history), listed()
    assert not found.keys() - admitted.keys(), HINT
    names = {file.stem for file in RESULTS.glob("*.json")}
    assert not admitted.keys() - names, f"listed and gone: {HINT}"
    if history.shallow:
        pytest.skip("a shallow clone cannot tell which commits are ancestors, so listed files may look fresh")
    assert not admitted.keys() - found.keys(), f"listed and fresh: {HINT}"


def test_the_list_is_as_it_is_written():
    assert written(listed()) == LIST.read_text()


def git(folder, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path):
    """A checkout of two commits with one source file, and the provenance of a result of the first."""
    root = tmp_path / "tree"
    file = root / "spectralquant" / "codec" / "block.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    facts = {
        "command": "sq study cold --out cold.json",
        "git_commit": git(root, "rev-parse", "HEAD"),
        "git_dirty": False,
        "code": folded({"spectralquant/codec/block.py": digest(file)}),
    }
    git(root, "commit", "-q", "--allow-empty", "-m", "two")
    return root, facts


def why(root, facts, **parts):
    return why_stale({"provenance": facts, "rows": [], **parts}, History(root))


def test_a_result_of_an_ancestor_with_the_same_code_is_fresh(tree):
    root, facts = tree
    assert why(root, facts) == []
    (root / "spectralquant" / "codec" / "block.py").write_text("# a comment\nx = 1\n")
    assert why(root, facts) == []


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"command": None}, "it names no command"),
        ({"git_commit": None}, "it names no commit"),
        ({"git_commit": "b" * 40}, "its commit bbbbbbbbb is not in this history"),
        ({"git_dirty": True}, "its tree was not clean"),
        ({"git_dirty": None}, "its tree was not clean"),
        ({"code": {}}, "it does not tell which code it used"),
    ],
)
def test_each_fault_makes_it_stale(tree, change, reason):
    root, facts = tree
    assert why(root, facts | change) == [reason]


def test_changed_code_makes_it_stale(tree):
    root, facts = tree
    (root / "spectralquant" / "codec" / "block.py").write_text("x = 2\n")
    assert why(root, facts) == ["its code has changed since: codec/block.py"]
    result = {"provenance": facts, "rows": []}
    assert why_stale(result, History(root), ("spectralquant/codec/",)) == why(root, facts)
    assert why_stale(result, History(root), ("spectralquant/gate/",)) == []


def test_parts_are_judged_too(tree):
    root, facts = tree
    part = {"git_commit": "c" * 40, "git_dirty": True}
    expected = [
        "its commit ccccccccc is not in this history",
        "its tree was not clean",
    ]
    assert why(root, facts | {"parts": {"home": part}}) == expected
    assert why(root, facts, homes={"a": {"provenance": part}}) == expected
    same = {"git_commit": facts["git_commit"], "git_dirty": False}
    assert why(root, facts, homes={"a": {"provenance": same}}) == []


@pytest.mark.parametrize(
    "then, fresh", [("x = 1\n", True), ("# a comment\nx = 1\n", True), ("x = 2\n", False), (None, False)]
)
def test_parts_may_be_of_another_commit_whose_code_says_the_same(tree, then, fresh):
    root, facts = tree
    file, now = root / "spectralquant" / "codec" / "block.py", "x = 1\n"
    if then is None:
        file.unlink()
    else:
        file.write_text(then)
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", "three")
    part = {"git_commit": git(root, "rev-parse", "HEAD"), "git_dirty": False}
    file.write_text(now)
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", "four")
    expected = [] if fresh else ["its parts are of several commits, whose code differs"]
    assert why(root, facts, rows=[part]) == expected
    result = {"provenance": facts, "rows": [part]}
    assert why_stale(result, History(root), ("spectralquant/gate/",)) == []


def test_a_shallow_clone_tells_all_but_the_history(tree, tmp_path):
    root, facts = tree
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{root}", str(clone))
    assert History(clone).shallow and why(clone, facts) == []
    assert why(clone, facts | {"git_dirty": True}) == ["its tree was not clean"]


def test_the_list_can_be_written_and_read(tmp_path):
    reasons = {"b": 'it says "no"', "a-file": "its tree was not clean"}
    (tmp_path / "stale.toml").write_text(written(reasons))
    assert listed(tmp_path / "stale.toml") == reasons
    (tmp_path / "x.json").write_text(json.dumps({"provenance": {}, "rows": []}))
    assert stale_files(tmp_path).keys() == {"x"}
