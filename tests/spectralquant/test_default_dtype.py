"""Nothing that codes or reads depends on `torch.set_default_dtype`: float tensors are made with a dtype of their own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [*(ROOT / "spectralquant" / name for name in ("cache", "codec", "hooks", "methods")), ROOT / "kernels"]
FILES = [path for folder in FOLDERS for path in folder.rglob("*.py")]
MAKERS = {"zeros", "ones", "empty", "rand", "randn", "linspace", "eye"}


def without_dtype(source: str) -> list[int]:
    """Lines that call `torch.zeros` and the like without a dtype."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if of_torch and not any(keyword.arg == "dtype" for keyword in node.keywords):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_float_tensors_name_their_dtype(path):
    assert not without_dtype(path.read_text())


def test_the_check_finds_what_it_looks_for():
    assert without_dtype("a = torch.zeros(3)\nb = torch.zeros(3, dtype=torch.float32)\nc = x.new_zeros(3)") == [1]
