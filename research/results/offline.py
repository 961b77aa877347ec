"""What `make results-gpu` needs on a machine without a network, in one folder that can be copied there.

`python -m research.results.offline FOLDER --text wiki.test.raw --wheel gguf==0.19.0 …` makes FOLDER/cache (built-in models, and the texts that
studies fetch), FOLDER/wheels and FOLDER/wiki.test.raw, and prints how they are used. What is there already is kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from research.headline.texts import PACKAGED
from research.headline.texts import text_file as headline_text
from research.quality.texts import TEXTS
from research.quality.texts import text_file as quality_text
from research.results.commands import TEXT, require_text
from spectralquant.errors import InputError, SpectralQuantError
from spectralquant.files import cache_folder
from spectralquant.models.builtin.folder import builtin_folder
from spectralquant.models.builtin.table import BUILTIN_MODELS
from sqcli.streams import flush_streams, tolerant_streams

GLIBC = range(17, 36)
"""Minor versions of glibc 2 whose wheels are taken; pip matches each exactly."""


def gather(folder: Path, text: Path | None, wheels: Sequence[str], python: str, offline: bool = False) -> None:
    """Fill `folder`.

    Raises:
        InputError: no such text, or pip has no such wheel for that Python. SourceError: a model or a text cannot be fetched.
    """
    if text is not None:
        require_text(text)
    for name in wheels:
        _require_package(name)
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    if text is not None:
        shutil.copyfile(text, folder / TEXT)
    for name in BUILTIN_MODELS:
        source = builtin_folder(name, offline=offline, report=print)
        shutil.copytree(source, cache / "models" / source.name, dirs_exist_ok=True)
    for name in PACKAGED:
        _copy(headline_text(name, offline=offline), cache)
    for each in TEXTS:
        _copy(quality_text(each.name, offline=offline), cache)
    for name in wheels:
        _wheel(name, folder / "wheels", python)


def _require_package(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.+!]+", name):
        raise InputError(f"--wheel {name!r} is not a package and its version, as gguf==0.19.0.")


def _copy(file: Path, cache: Path) -> None:
    """A file of this user's cache, at its place in the other."""
    target = cache / file.relative_to(cache_folder())
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def _wheel(name: str, folder: Path, python: str) -> None:
    """One package's wheel, without those it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "-d", str(folder)]
    command += [word for tag in tags for word in ("--platform", tag)]
    done = subprocess.run([*command, name], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise InputError(
            f"pip gives no wheel of {name} for Python {python} on {machine} ({said}). Name another version."
        )


def _python(text: str) -> str:
    """A version of Python 3; whether there are wheels for it is for pip to say."""
    if not re.fullmatch(r"3\.\d{1,2}(\.\d{1,2})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version of Python, as 3.12")
    return text


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name the folder to fill")
    return Path(text)


def _idle(given: argparse.Namespace) -> str:
    """What is asked for and cannot go together; empty where there is none."""
    if given.python and not given.wheel:
        return "--python does nothing without --wheel: models and texts are the same for every Python. Leave it out."
    if given.wheel and given.offline and not os.environ.get("PIP_NO_INDEX"):
        return "--wheel needs the network, and --offline forbids it. Leave one of them out (or give pip a folder: PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER)."
    return ""


def how_to(folder: str, wheels: bool, text: bool) -> str:
    """Commands for the other machine, in a copy of this checkout beside FOLDER."""
    folder = shlex.quote(folder)
    lines = [f"export SPECTRALQUANT_CACHE={folder}/cache HF_HUB_OFFLINE=1"]
    if wheels:
        lines += [
            f"python3 -m pip install --no-index --no-deps --target {folder}/site {folder}/wheels/*.whl",
            f"export PYTHONPATH={folder}/site",
        ]
    more = f" --text {folder}/{TEXT}" if text else ""
    note = "" if text else "  # and --text, WikiText-2 raw test, for most files"
    return "\n".join([*lines, f"python3 -m research.results.run --needs gpu{more}{note}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """0: the folder is complete; 2: something is not to be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=_folder)
    parser.add_argument("--text", type=Path, help="WikiText-2 raw test")
    parser.add_argument(
        "--wheel", action="append", default=[], help="a package that machine lacks, as NAME==VERSION (repeat it)"
    )
    parser.add_argument("--python", type=_python, help="that machine's Python, as 3.12 (default: this one's)")
    parser.add_argument("--offline", action="store_true", help="take only what this machine's cache has")
    given = parser.parse_args(arguments)
    if idle := _idle(given):
        print(idle, file=sys.stderr)
        return 2
    try:
        gather(given.folder, given.text, given.wheel, given.python or platform.python_version(), given.offline)
    except OSError as error:
        print(
            f"{given.folder} cannot be filled: {error.strerror}: {error.filename}. Give another folder.",
            file=sys.stderr,
        )
        return 2
    except SpectralQuantError as error:
        print(error, file=sys.stderr)
        return 2
    print("`make provenance` before the checkout is copied; then, there, with FOLDER's own path:")
    print(how_to(given.folder.resolve().name, bool(given.wheel), given.text is not None))
    return 0


if __name__ == "__main__":
    tolerant_streams()
    sys.exit(flush_streams(main()))
