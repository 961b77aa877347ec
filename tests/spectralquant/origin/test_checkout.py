"""The commit that results name: from the environment, from git, from the file that travels with a copy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from begun_for_tests import nothing_begun  # noqa: F401

from spectralquant.origin import checkout
from spectralquant.origin.checkout import FILE, SourceCommit, source_commit, write_provenance
from spectralquant.provenance import provenance

ROOT = Path(__file__).resolve().parents[3]


def git(folder, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path):
    """A checkout with one source file, ignoring the file that travels."""
    root = tmp_path / "tree"
    (root / "spectralquant").mkdir(parents=True)
    (root / "spectralquant" / "a.py").write_text("x = 1\n")
    (root / ".gitignore").write_text(FILE + "\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


def copied(tree, tmp_path):
    """The tree as it arrives on a machine without git."""
    return Path(shutil.copytree(tree, tmp_path / "copy", ignore=shutil.ignore_patterns(".git")))


def test_a_checkout_is_asked_through_git(tree):
    head = git(tree, "rev-parse", "HEAD")
    assert source_commit(tree, {}) == SourceCommit(head, False)
    (tree / "spectralquant" / "a.py").write_text("x = 2\n")
    assert source_commit(tree, {}) == SourceCommit(head, True)


@pytest.mark.parametrize(
    "name, dirty",
    [("a b.json", False), ("profile-h100.json", True), ("../baselines/smoke.json", True)],
)
def test_results_that_were_just_written_are_no_change_of_the_code(tree, name, dirty):
    """Or each file that is made would have to be committed before the next one."""
    file = tree / "profiles" / "results" / name
    for folder in ("results", "baselines"):
        (tree / "profiles" / folder).mkdir(parents=True)
    file.write_text("{}")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "two")
    assert source_commit(tree, {}).dirty is False
    file.write_text("[]")
    assert source_commit(tree, {}).dirty is dirty
    git(tree, "add", "-A")
    assert source_commit(tree, {}).dirty is dirty


def test_a_new_module_is_a_change_and_other_new_files_are_none(tree):
    (tree / "notes.py").write_text("x = 1\n")
    (tree / "spectralquant" / "notes.txt").write_text("x")
    assert source_commit(tree, {}).dirty is False
    (tree / "spectralquant" / "b.py").write_text("x = 1\n")
    assert source_commit(tree, {}).dirty is True


def test_a_copy_without_git_names_its_commit(tree, tmp_path):
    write_provenance(tree)
    assert source_commit(copied(tree, tmp_path), {}) == SourceCommit(git(tree, "rev-parse", "HEAD"), False)


def test_a_dirty_tree_stays_dirty_in_its_copy(tree, tmp_path):
    (tree / "spectralquant" / "a.py").write_text("x = 2\n")
    write_provenance(tree)
    assert source_commit(copied(tree, tmp_path), {}).dirty is True


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_a_copy_that_was_changed_is_dirty(tree, tmp_path, change):
    write_provenance(tree)
    copy = copied(tree, tmp_path)
    if change == "edited":
        (copy / "spectralquant" / "a.py").write_text("x = 3\n")
    elif change == "added":
        (copy / "spectralquant" / "b.py").write_text("")
    else:
        (copy / "spectralquant" / "a.py").unlink()
    assert source_commit(copy, {}) == SourceCommit(git(tree, "rev-parse", "HEAD"), True)


def test_a_checkout_does_not_believe_a_stale_file(tree):
    write_provenance(tree)
    (tree / "spectralquant" / "a.py").write_text("x = 2\n")
    git(tree, "commit", "-qam", "two")
    assert source_commit(tree, {}) == SourceCommit(git(tree, "rev-parse", "HEAD"), False)


def test_without_anything_nothing_is_claimed(tree, tmp_path):
    assert source_commit(copied(tree, tmp_path), {}) == SourceCommit(None, None)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"SQ_GIT_COMMIT": "ABCDEF1", "SQ_GIT_DIRTY": "1"}, SourceCommit("abcdef1", True)),
        ({"SQ_GIT_COMMIT": "a" * 40, "SQ_GIT_DIRTY": "false"}, SourceCommit("a" * 40, False)),
        ({"SQ_GIT_COMMIT": "a" * 40}, SourceCommit("a" * 40, None)),
    ],
)
def test_the_environment_comes_first(tree, environment, expected):
    assert source_commit(tree, environment) == expected


def test_what_is_no_commit_is_warned_of(tree):
    with pytest.warns(UserWarning, match="not a commit"):
        assert source_commit(tree, {"SQ_GIT_COMMIT": "main"}) == SourceCommit(None, None)
    with pytest.warns(UserWarning, match="SQ_GIT_DIRTY='maybe'"):
        assert source_commit(tree, {"SQ_GIT_COMMIT": "a" * 40, "SQ_GIT_DIRTY": "maybe"}).dirty is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"git_commit": 5, "git_dirty": false, "sources_sha256": ""}', '{"git_commit": "main"}']
)
def test_a_damaged_file_is_warned_of(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.warns(UserWarning, match="damaged"):
        assert source_commit(tmp_path, {}) == SourceCommit(None, None)


def test_no_file_is_written_where_there_is_no_checkout(tmp_path):
    with pytest.raises(RuntimeError, match="not a git checkout"):
        write_provenance(tmp_path)
    assert not (tmp_path / FILE).exists()


def test_results_of_a_copy_name_the_commit(tmp_path):
    """A process of a copied tree, as on a machine that a checkout was sent to."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "spectralquant", copy / "spectralquant", ignore=shutil.ignore_patterns("__pycache__"))
    facts = {"git_commit": "c" * 40, "git_dirty": False, "sources_sha256": checkout.sources_sha256(copy)}
    (copy / FILE).write_text(json.dumps(facts))
    code = "import json; from spectralquant.provenance import provenance; print(json.dumps(provenance()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env={"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["git_commit"], found["git_dirty"]) == ("c" * 40, False)


def test_provenance_takes_the_environment(monkeypatch):
    monkeypatch.setenv("SQ_GIT_COMMIT", "d" * 40)
    monkeypatch.setenv("SQ_GIT_DIRTY", "0")
    found = provenance(seed=1)
    assert (found["git_commit"], found["git_dirty"], found["seed"]) == ("d" * 40, False, 1)
