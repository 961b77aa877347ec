"""The wheel holds the three packages, and the published package `kernels` stays importable beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "--disable-pip-version-check", "-w", folder, ROOT
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("spectralquant_toolkit-*.whl"))


def test_wheel_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"sqcli", "spectralquant", "sqkernels"}
    entry = next(n for n in names if n.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry).decode()
    assert "sq = sqcli.app:main" in text and "spectralquant = sqcli.app:main" in text


def test_published_kernels_package_is_not_shadowed(wheel, tmp_path):
    """Both installed side by side, and again from the repository root, where a folder `kernels` lies."""
    site = tmp_path / "site"
    done = run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
        site,
        wheel,
        "kernels",
    )
    if done.returncode != 0 and "No matching distribution" not in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import importlib.util as u\n"
        "print(u.find_spec('kernels').origin); print(u.find_spec('sqkernels').origin); print(u.find_spec('sqcli').origin)"
    )
    for folder in (tmp_path, ROOT):
        done = run(sys.executable, "-c", code, site, cwd=folder)
        kernels, sqkernels, sqcli = done.stdout.split()
        assert kernels == str(site / "kernels" / "__init__.py")
        assert Path(sqkernels).parent.name == "sqkernels" and Path(sqcli).parent.name == "sqcli"
