"""`--quotable` ends with 2 before any work; without it the result is written and says why it is not quotable."""

import json
import os
import subprocess
import sys

import pytest

DIRTY = {"SQ_GIT_COMMIT": "a" * 40, "SQ_GIT_DIRTY": "1"}


def sq(*words, **environment):
    command = [sys.executable, "-m", "sqcli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize("words", [("study", "gate", "--out"), ("compare", "fp8", "--json")], ids=lambda w: w[0])
def test_a_changed_tree_is_refused(words, tmp_path):
    file = tmp_path / "r.json"
    done = sq(*words, file, "--quotable", **DIRTY)
    assert done.returncode == 2 and not file.exists()
    assert "could not be quoted: its code was changed after commit aaaaaaaaa. Commit your changes" in " ".join(
        done.stderr.split()
    )


@pytest.mark.slow  # a whole study in a process of its own
def test_a_study_says_why_it_is_not_quotable(tmp_path):
    file = tmp_path / "r.json"
    done = sq("study", "gate", "--out", file, **DIRTY)
    assert done.returncode == 0 and "Not quotable: its code was changed after commit aaaaaaaaa." in done.stderr
    facts = json.loads(file.read_text())["provenance"]
    assert facts["quotable"] is False and facts["not_quotable"] == ["its code was changed after commit aaaaaaaaa"]
