"""What a shell completes: options, and the values of those that take names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def completed(line: str) -> list[str]:
    """What bash is offered for the last word of a line."""
    here = len(line.split(" ")) - 1
    asked = {"_SQ_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(here)}
    code = "import sqcli.root; sqcli.root.run([])"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sq calibrate --me", ["--metric", "--memory"]),
        ("sq calibrate --tier hot,w", ["hot,warm"]),
        ("sq calibrate --data builtin:py", ["builtin:pydoc"]),
        ("sq compare h2", ["h2o"]),
        ("sq pack --model builtin:g", ["builtin:gemma3-270m"]),
    ],
)
def test_names_are_offered(line, offered):
    assert completed(line) == offered
