"""Which source files a process used, itself and in processes that it starts, and a hash of what each of them says.

Comments, docstrings and blank lines of Python are no part of the hash: it changes where the code may do something else. Files
that only read options, write files or show figures are left out (`NO_MATTER`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path

from spectralquant.origin.started import started_code

ROOT = Path(__file__).resolve().parent.parent.parent
TOPS = ("spectralquant", "sqkernels", "research")
NO_MATTER = (
    "research/readme/",
    "research/results/",
    "research/run.py",
    "spectralquant/__init__.py",
    "spectralquant/claims.py",
    "spectralquant/errors.py",
    "spectralquant/files.py",
    "spectralquant/known_faults.py",
    "spectralquant/origin/",
    "spectralquant/processes.py",
    "spectralquant/provenance.py",
    "spectralquant/results/",
    "spectralquant/streams.py",
    "spectralquant/surroundings.py",
)
DIGITS = 8


def used_code(root: Path = ROOT) -> dict[str, str]:
    """The files that this process has imported or starts in others, and the C sources beside them, a line a folder:
    `{"spectralquant/text": "mix 1f2e3d4c, tokens …"}`.
    """
    paths = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] not in TOPS and name != "__main__":
            continue
        if file is not None and Path(file).is_relative_to(root) and file.endswith(".py"):
            paths.add(Path(file).relative_to(root).as_posix())
    paths |= started_code(paths, root)
    for folder in {(root / path).parent for path in paths}:
        paths.update(file.relative_to(root).as_posix() for file in folder.glob("*.c"))
    return folded({path: digest(root / path) for path in sorted(paths) if matters(path)})


def matters(path: str) -> bool:
    """Whether a source file can change a figure."""
    inside = path.removeprefix("kernels/").partition("/")[0] in TOPS
    return inside and not path.startswith(NO_MATTER)


def digest(file: Path) -> str:
    """Hash of what a source file says."""
    return _digest(file, file.stat().st_mtime_ns)


@functools.cache
def _digest(file: Path, _: int) -> str:
    said = said_by(file.name, file.read_text(encoding="utf-8"))
    return hashlib.sha256(said.encode()).hexdigest()[:DIGITS]


def said_by(name: str, source: str) -> str:
    """What a file of this name says: Python without what only people read, all else as it is."""
    return meaning(source) if name.endswith(".py") else source


def meaning(source: str) -> str:
    """Source without comments, docstrings, blank lines and space at ends of lines; the same on every Python."""
    lines = source.splitlines()
    comments = tokenize.generate_tokens(io.StringIO(source).readline) if "#" in source else ()
    for token in comments:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                    lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def folded(digests: Mapping[str, str]) -> dict[str, str]:
    """One entry a folder, as results files hold them."""
    folders: dict[str, list[str]] = {}
    for path, value in digests.items():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(f"{name.removesuffix('.py')} {value}")
    return {folder: ", ".join(names) for folder, names in folders.items()}


def unfolded(folders: Mapping[str, str]) -> dict[str, str]:
    """`{path: hash}` of what `folded` made."""
    out = {}
    for folder, names in folders.items():
        for entry in names.split(", "):
            name, _, value = entry.rpartition(" ")
            out[f"{folder}/{name}" if "." in name else f"{folder}/{name}.py"] = value
    return out


def changed_code(folders: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Files that say something else in the tree at `root` than when a result was made, or are gone; those that do not
    matter (any more) are left out.
    """
    out = []
    for path, value in unfolded(folders).items():
        file = root / path
        if matters(path) and (not file.is_file() or digest(file) != value):
            out.append(path)
    return out
