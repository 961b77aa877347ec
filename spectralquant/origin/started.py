"""Source files that run in processes of their own: engines, servers and commands that a measuring process starts.

What such a process imports cannot be seen from the one that writes the results file. So its imports are read from the source,
those inside functions among them: rather a file too many than one too few.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

TOPS = ("spectralquant", "sqkernels", "research", "sqcli")
ENGINE = "spectralquant/integrations/vllm/"  # vLLM finds its classes by name
CHILD = "spectralquant/integrations/serve_check/child.py"
STARTED: dict[str, tuple[str, ...]] = {
    "spectralquant/integrations/serve_check/process.py": (CHILD, ENGINE),
    "spectralquant/integrations/serve_check/spares.py": (CHILD, ENGINE),
    "spectralquant/integrations/container/entry.py": (ENGINE,),
    "research/serving/engines/rounds.py": ("research/serving/engines/engine.py", CHILD, ENGINE),
    "research/serving/server.py": ("spectralquant/integrations/container/entry.py", ENGINE),
    "research/serving/study.py": ("research/serving/large.py",),
    "research/serving/hot_speed.py": ("research/serving/hot_large.py",),
    "research/scale/runs.py": (
        "sqcli/commands/calibrate.py",
        "research/scale/streamed.py",
        "research/scale/together.py",
    ),
}
"""The file that starts processes: the files or folders that run in them."""


def started_code(used: Iterable[str], root: Path) -> set[str]:
    """Paths of the code in processes that the files `used` start, relative to `root`."""
    begin = [found for path in used for place in STARTED.get(path, ()) for found in _files(root, place)]
    seen: set[str] = set()
    while begin:
        path = begin.pop()
        if path not in seen:
            seen.add(path)
            begin.extend(imported(root, path))
    return seen


def _files(root: Path, place: str) -> list[str]:
    if place.endswith("/"):
        return [file.relative_to(root).as_posix() for file in sorted((root / place).rglob("*.py"))]
    return [place] if (root / place).is_file() else []


def imported(root: Path, path: str) -> Iterator[str]:
    """Our own files that a source file imports anywhere in it, and the packages they lie in."""
    for name in _names(root / path, (root / path).stat().st_mtime_ns):
        parts = name.split(".")
        base = root / "kernels" if parts[0] == "sqkernels" else root
        for count in range(1, len(parts) + 1):
            place = base.joinpath(*parts[:count])
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    yield file.relative_to(root).as_posix()


@functools.cache
def _names(file: Path, _: int) -> tuple[str, ...]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:  # no relative imports here
            names += [f"{node.module}.{one.name}" for one in node.names]
    return tuple(name for name in names if name.partition(".")[0] in TOPS)
