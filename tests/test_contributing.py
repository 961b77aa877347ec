"""CONTRIBUTING's recipes, typed as they stand there: files are written into a copy of the repository, commands are run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("spectralquant", "sqcli", "kernels", "research", "tests", "pyproject.toml")
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ") if part.startswith("Add ")}
FENCE = re.compile(r'```(python title="(?P<path>[^"]+)"|console)\n(?P<body>.*?)```', re.S)
PYTHON = ".venv/bin/python "


def files_of(recipe: str) -> dict[str, str]:
    return {m["path"]: m["body"] for m in FENCE.finditer(RECIPES[recipe]) if m["path"]}


def commands_of(recipe: str) -> list[str]:
    blocks = [m["body"] for m in FENCE.finditer(RECIPES[recipe]) if not m["path"]]
    return [line for body in blocks for line in body.splitlines() if line.startswith(PYTHON)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("contributing")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def test_there_are_three_recipes():
    assert list(RECIPES) == ["Add a method", "Add a kernel, or a variant of one", "Add a metric"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_adds_two_files_and_changes_none(recipe):
    files = files_of(recipe)
    assert len(files) == 2 and not any((ROOT / path).exists() for path in files)


@pytest.mark.slow  # a copy of the repository, and four processes that import torch
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_as_it_stands(copy, recipe):
    for path, body in files_of(recipe).items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(body)
    lint = [sys.executable, "-m", "ruff", "check", *files_of(recipe)]
    style = [sys.executable, "-m", "ruff", "format", "--check", *files_of(recipe)]
    commands = [[sys.executable, *line.removeprefix(PYTHON).split()] for line in commands_of(recipe)]
    assert commands
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}", "OMP_NUM_THREADS": "1"}
    for command in (lint, style, *commands):
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-2000:]}"
        if "pytest" in command:
            assert re.search(r"[1-9]\d* passed", done.stdout) and "skipped" not in done.stdout
