"""The code that a result notes: files that matter, and hashes that change only with what they say."""

import subprocess
import sys
from pathlib import Path

import pytest
from begun_for_tests import nothing_begun  # noqa: F401

from spectralquant.origin.used_code import changed_code, digest, folded, matters, meaning, unfolded, used_code

ROOT = Path(__file__).resolve().parents[3]
SOURCE = '''"""What it is."""

import math  # for pi


class A:
    """A class."""

    x = "# no comment"  # a comment

    def f(self):
        """Doc
        of two lines."""
        return """text
        kept""" + str(math.pi)
'''


def test_comments_docstrings_and_blank_lines_say_nothing():
    other = (
        SOURCE.replace("  # for pi", "")
        .replace("What it is.", "Else.")
        .replace("Doc\n", "Other\n\n")
        .replace("\n\n\nclass", "\nclass")
    )
    assert other != SOURCE and meaning(other) == meaning(SOURCE)
    assert '"# no comment"' in meaning(SOURCE) and "kept" in meaning(SOURCE) and "Doc" not in meaning(SOURCE)


@pytest.mark.parametrize("old, new", [("math.pi", "math.e"), ("# no comment", "# a comment"), ("kept", "changed")])
def test_whatever_may_do_something_else_says_something_else(old, new):
    assert meaning(SOURCE.replace(old, new)) != meaning(SOURCE)


def test_files_that_only_write_or_show_do_not_matter():
    assert (
        matters("spectralquant/codec/block.py") and matters("kernels/sqkernels/api.py") and matters("research/cold.py")
    )
    assert not matters("sqcli/app.py") and not matters("spectralquant/results/files.py")
    assert not matters("research/readme/write.py") and not matters("tests/conftest.py")


def test_what_a_process_imported_is_noted():
    command = "import spectralquant.text.mix, json; from spectralquant.origin.used_code import used_code; print(json.dumps(used_code()))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "spectralquant/text" in done.stdout and " tokens" not in done.stdout.split("spectralquant/text")[0]
    assert "spectralquant/codec" not in done.stdout and "origin" not in done.stdout
    assert used_code().keys() >= {"spectralquant"}


def test_changed_and_missing_files_are_found(tmp_path):
    folder = tmp_path / "spectralquant" / "codec"
    folder.mkdir(parents=True)
    paths = [f"spectralquant/codec/{name}.py" for name in ("a", "b", "c")]
    for path in paths:
        (tmp_path / path).write_text("x = 1\n")
    noted = folded({path: digest(tmp_path / path) for path in paths})
    assert noted.keys() == {"spectralquant/codec"} and unfolded(noted).keys() == set(paths)
    assert changed_code(noted, tmp_path) == []
    (tmp_path / paths[0]).write_text("# said otherwise\nx = 1\n")
    (tmp_path / paths[1]).write_text("x = 22\n")
    (tmp_path / paths[2]).unlink()
    assert changed_code(noted, tmp_path) == paths[1:]
