"""The house rules: which way imports go, no shadowing, no heavy imports at the command line, small files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {"sqkernels": 0, "spectralquant": 1, "sqcli": 2, "research": 3}
# `sq study` hands over to the studies, which are there in a checkout only.
HANDS_OVER = {"sqcli/commands/study.py": "research"}
INSIDE = [
    {
        "errors",
        "known_faults",
        "origin",
        "files",
        "hub_log",
        "claims",
        "processes",
        "provenance",
        "sizes",
        "streams",
        "surroundings",
        "rotary",
        "rotary_layout",
    },
    {"geometry", "results", "text"},
    {"hooks"},
    {"models", "diagnostics"},
    {"profile"},
    {"codec"},
    {"calibration"},
    {"cache", "methods"},
    {"graphed"},
    {"bench"},
    {"evaluation"},
    {"calibrating"},
    {"gate"},
    {"integrations"},
]
RANK = {name: i for i, names in enumerate(INSIDE) for name in names}
TOPS = ("sqcli", "spectralquant", "kernels/sqkernels", "research")
FILES = [p for top in TOPS for p in (ROOT / top).rglob("*.py")]
MAX_FILES = 15


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_upwards(path):
    parts = path.relative_to(ROOT).parts
    mine = "sqkernels" if parts[0] == "kernels" else parts[0]
    for name in imports(path):
        words = name.split(".")
        if words[0] in LAYERS and HANDS_OVER.get(str(path.relative_to(ROOT))) != words[0]:
            assert LAYERS[words[0]] <= LAYERS[mine], f"{path} imports {name}"
        if mine == words[0] == "spectralquant" and len(words) > 1:
            here = parts[1].removesuffix(".py")
            assert here == "__init__" or words[1] == here or RANK[words[1]] <= RANK[here], f"{path} imports {name}"


def module_name(path: Path, top: Path) -> str:
    """What a file is imported as; `top` is the folder that its package lies in."""
    return ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]):
    """Which of `modules` a file imports anywhere: at the top, in functions, and for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the whole name of what is imported"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from ({inner, node.module} & modules) if inner not in modules else (inner,)


def circles(files: dict[str, Path]) -> list[list[str]]:
    """Modules that import each other in a circle, each circle with all its modules."""
    graph = {name: set(imported_modules(path, set(files))) - {name} for name, path in files.items()}

    def reached_from(start: str) -> set[str]:
        reached, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - reached
            reached |= new
            todo += new
        return reached

    reach = {name: reached_from(name) for name in graph}
    return sorted(
        map(sorted, {frozenset(m for m in reach[name] if name in reach[m]) for name in graph} - {frozenset()})
    )


def test_no_circles_of_files():
    files = {module_name(path, (ROOT / top).parent): path for top in TOPS for path in (ROOT / top).rglob("*.py")}
    assert circles(files) == []


@pytest.mark.parametrize(
    "text", ["import p.b", "def f():\n    from p import b", "if TYPE_CHECKING:\n    from p.b import x"]
)
def test_a_circle_is_seen(tmp_path, text):
    (tmp_path / "p").mkdir()
    for name, content in {
        "__init__": "",
        "a": text,
        "b": "from p import c",
        "c": "import p.a",
        "d": "import p.a",
    }.items():
        (tmp_path / "p" / f"{name}.py").write_text(content)
    files = {module_name(path, tmp_path): path for path in tmp_path.rglob("*.py")}
    assert circles(files) == [["p.a", "p.b", "p.c"]]


def test_every_package_has_a_rank():
    assert {
        p.name.removesuffix(".py")
        for p in (ROOT / "spectralquant").iterdir()
        if not p.name.startswith("__") and p.suffix in ("", ".py")
    } == set(RANK)


def test_folders_stay_small():
    folders = {path.parent for path in FILES}
    full = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MAX_FILES}
    assert not full


def test_no_package_shadows_the_published_kernels():
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.name != "utils.py"


def test_the_command_line_starts_without_torch():
    code = "import sys, sqcli.app; sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_imports():
    import spectralquant

    for name in spectralquant.__all__:
        assert getattr(spectralquant, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        spectralquant.nothing  # noqa: B018


def test_test_modules_have_names_of_their_own():
    """pytest imports them by their bare names: two of one name stop the whole run."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
