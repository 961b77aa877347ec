"""What would be uploaded: the wheel holds three packages and nothing else, the sdist passes tests of its own.

`make release` sets SQ_DIST to the folder that it built; otherwise both are built here, without fetching anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("spectralquant", "sqcli", "sqkernels")
# Fast, and together they touch packets, profiles, stored test data and kernels.
SDIST_TESTS = (
    "tests/spectralquant/test_stored_files.py",
    "tests/spectralquant/codec/test_packet.py",
    "tests/sqkernels/test_bitpack.py",
)


def run(*command, **options):
    return subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, timeout=600, **options
    )


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    if "SQ_DIST" in os.environ:
        return Path(os.environ["SQ_DIST"]).resolve()
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("spectralquant_toolkit-*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(dist, tmp_path_factory) -> Path:
    (path,) = dist.glob("spectralquant_toolkit-*.tar.gz")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(path) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        archive.extractall(folder, **safe)
    (top,) = folder.iterdir()
    return top


def test_an_index_would_take_both(dist):
    done = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_wheel_contents(wheel):
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "sqcli/html/templates/page.html" in names
    sources = {"sqkernels": ROOT / "kernels"}
    for package in PACKAGES:
        folder = sources.get(package, ROOT)
        ours = {str(p.relative_to(folder)) for p in (folder / package).rglob("*.py")}
        assert ours == {name for name in names if name.startswith(f"{package}/") and name.endswith(".py")}
    entry = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "sq = sqcli.app:main" in entry and "spectralquant = sqcli.app:main" in entry


def test_the_readme_of_the_index_has_no_link_into_the_repository(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))))
    readme = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "make demo" in readme and len(readme.splitlines()) > 80
    assert not re.findall(r"<img|!\[|\]\((?!https?:)", readme)


def test_the_sdist_passes_tests_of_its_own(sdist):
    environment = {k: v for k, v in os.environ.items() if k != "SQ_DIST"}
    environment |= {"PYTHONPATH": f"{sdist}{os.pathsep}{sdist / 'kernels'}"}
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SDIST_TESTS, cwd=sdist, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d{2,} passed", done.stdout)
    assert (sdist / "examples").is_dir() and (sdist / "CONTRIBUTING.md").is_file()


def test_the_wheel_works_alone(wheel, tmp_path):
    """From another folder, without the repository on the path."""
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
    )
    assert done.returncode == 0, done.stderr
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = (
        "import spectralquant, sqkernels.bitpack; from spectralquant.methods.registry import REGISTRY\n"
        "print(spectralquant.__file__, len(REGISTRY), all(getattr(spectralquant, n) for n in spectralquant.__all__))"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    where, methods, every = done.stdout.split()
    assert where.startswith(str(site)) and int(methods) >= 12 and every == "True"
    done = run(sys.executable, "-m", "sqcli", "compare", "--help", cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "--profile" in done.stdout


def test_published_kernels_package_is_not_shadowed(wheel, tmp_path):
    """Both installed side by side, and again from the repository root, where a folder `kernels` lies."""
    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", site)
    done = run(*pip, wheel, "kernels")
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
