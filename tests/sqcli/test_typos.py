"""A typo on the command line is answered at once: nothing heavy is imported, nothing is read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spectralquant.errors import did_you_mean
from spectralquant.methods.names import method_names
from sqcli.app import main

TYPOS = {
    "compare h2oo": "Did you mean 'h2o'?",
    "compare h2o+spectrall": "Did you mean 'spectral'?",
    "compare h2o --quik": "--quick",
    "compare": "Missing argument",
    "calibrate --tier colt": "Did you mean 'cold'?",
    "calibrate --tier cold,hott": "Did you mean 'hot'?",
    "calibrate --target klx=3": "Did you mean 'kl'?",
    "calibrate --target warm:rato=3": "Did you mean 'ratio'?",
    "calibrate --target ratio=x": "is not a number",
    "calibrate --metric fischer": "Did you mean 'fisher'?",
    "calibrate --predict token": "Did you mean 'tokens'?",
    "calibrate --model builtin:smolm": "Did you mean 'builtin:smollm2-135m'?",
    "calibrate --data tickets.jsonl": "there is no such file",
    "calibrate --data builtin:pydocs": "Did you mean 'builtin:pydoc'?",
    "calibrate --held-out-data pydoc": "Did you mean 'builtin:pydoc'?",
    "calibrate --data builtin:pydoc=-1": "must be a positive number",
    "calibrate --dtype floot32": "Did you mean 'float32'?",
    "calibrate --device gpu": "is not one of auto, cpu, cuda",
    "calibrate --device cuda:x": "is not one of auto, cpu, cuda",
    "calibrate --steps many": "valid integer",
    "calibrat": "No such command",
    "gate --run smok": "Did you mean 'smoke'?",
    "generate --tier hott x": "Did you mean 'hot'?",
    "generate --budget 64MX x": "is not a size",
    "pack --profile p --out x --exact int7 text": "Did you mean 'int8'?",
    "profile --device-model h10": "Did you mean 'h100'?",
    "profile --shape llama-3.1-8c": "Did you mean 'llama-3.1-8b'?",
    "profile --shape custom:layers=2": "needs heads",
    "unpack x --profile p --model builtin:gemma": "Did you mean 'builtin:gemma3-270m'?",
}


def test_no_typo_costs_an_import_of_torch():
    code = (
        "import sys, contextlib, io\nfrom sqcli.app import main\n"
        "for line in sys.argv[1:]:\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):\n"
        "        main(line.split())\n"
        "    print(repr(' '.join(said.getvalue().split())))\n"
        "    assert not {'torch', 'transformers'} & set(sys.modules), line\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *TYPOS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for (line, wanted), said in zip(TYPOS.items(), done.stdout.splitlines(), strict=True):
        assert wanted in said and said[1:].startswith("sq: "), (line, said)
        assert "╭" not in said and "Usage" not in said, "errors have one style"


@pytest.mark.parametrize("line", TYPOS)
def test_every_typo_is_wrong_usage(line, capsys):
    with pytest.raises(SystemExit) as end:
        main(line.split())
    assert end.value.code == 2 and capsys.readouterr().err.startswith("sq: ")


def test_a_misspelt_study_is_told_before_options_that_are_missing(capsys):
    with pytest.raises(SystemExit):
        main(["study", "headlin"])
    assert "Did you mean 'headline'?" in capsys.readouterr().err


def test_help_names_the_methods_and_defaults(capsys):
    from spectralquant.methods.registry import REGISTRY

    assert set(method_names()) == set(REGISTRY)
    for command, words in (("compare", method_names()), ("calibrate", ["profiles/MODEL-TEXT", "ratio=33 (default)"])):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = "".join(capsys.readouterr().out.replace("│", " ").split())
        assert all("".join(word.split()) in said for word in words), command


def test_suggestions_are_near_or_none():
    devices = ("h100", "h200", "a100")
    assert did_you_mean("b300", devices) == "" and "'h100'" in did_you_mean("h10", devices)
    assert "'turboquant'" in did_you_mean("turbo", ("turboquant", "h2o"))
    assert did_you_mean("a", ("turboquant", "streaming")) == ""


@pytest.mark.parametrize("first", ["head -1", "head -c 1", "true"])
def test_a_reader_that_goes_away_is_no_error(first):
    line = f'"{sys.executable}" -m sqcli --help | {first} > /dev/null; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["/bin/bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and done.stderr == ""
