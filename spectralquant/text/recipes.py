"""Built-in texts: what every Python and the packages around it carry, and `builtin:mix`, a recipe of four kinds.

prose: the descriptions of installed packages. code: the standard library. manuals: Python's own. languages: message
catalogues (gettext) of the system and of installed packages, where there are any.
"""

from __future__ import annotations

import gettext
import hashlib
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata, resources
from pathlib import Path

from spectralquant.text.documents.report import Report

MIX = "builtin:mix"
CATALOGUES = ("/usr/share/locale", "/usr/local/share/locale")
LEAST_MESSAGE, LEAST_CATALOGUE, LEAST_LANGUAGES = 30, 2_000, 400_000
MOST_CATALOGUE = 40_000


def pydoc() -> Iterator[str]:
    """Python's own manual: 465,000 characters of English technical prose in every CPython."""
    from pydoc_data import topics

    return (topics.topics[name] for name in sorted(topics.topics))


def stdlib() -> Iterator[str]:
    """The standard library's modules, in alphabetical order."""
    return map(_read, sorted(_library().glob("*.py")))


def gate() -> Iterator[str]:
    """The text of the gate: 115,000 characters about this library that are the same in every version of it and of Python, so
    that baselines stay comparable.
    """
    text = resources.files("spectralquant.text").joinpath("data/gate.txt").read_bytes().decode("utf-8")
    return iter(text.split("\n\n"))


def code() -> Iterator[str]:
    """The standard library with its packages, in an order that no name decides."""
    library = _library()
    files = [p for p in library.rglob("*.py") if "site-packages" not in p.parts and "dist-packages" not in p.parts]
    return map(_read, sorted(files, key=lambda p: _shuffled(p.relative_to(library).as_posix())))


def prose() -> Iterator[str]:
    """Descriptions of installed packages, as their authors wrote them for a package index."""
    described = {d.metadata["Name"]: d for d in metadata.distributions() if d.metadata["Name"]}
    for name in sorted(described, key=_shuffled):
        text = described[name].metadata.get_payload() or described[name].metadata.get("Description") or ""
        if len(text) > LEAST_CATALOGUE:
            yield text


def languages() -> Iterator[str]:
    """Messages of translated catalogues, a document each."""
    folders = [Path(folder) for folder in (*CATALOGUES, sysconfig.get_paths()["purelib"])]
    files = [p for folder in folders if folder.is_dir() for p in folder.rglob("*.mo")]
    for path in sorted(files, key=lambda p: _shuffled("/".join(p.parts[-3:]))):
        try:
            with path.open("rb") as handle:
                messages = gettext.GNUTranslations(handle)._catalog.values()
        except (OSError, ValueError, IndexError):
            continue  # a catalogue that gettext cannot read is not text
        text = "\n".join(m for m in messages if isinstance(m, str) and len(m) >= LEAST_MESSAGE)
        if len(text) >= LEAST_CATALOGUE:
            yield text[:MOST_CATALOGUE]


TEXTS: dict[str, Callable[[], Iterator[str]]] = {
    "builtin:pydoc": pydoc,
    "builtin:stdlib": stdlib,
    "builtin:gate": gate,
    "builtin:prose": prose,
    "builtin:code": code,
    "builtin:languages": languages,
}
PARTS = {"builtin:prose": 1.0, "builtin:code": 1.0, "builtin:pydoc": 1.0, "builtin:languages": 1.0}


def mix_parts(report: Report) -> dict[str, float]:
    """The texts of `builtin:mix` that are there, with their weights; what is missing is said."""
    if _enough(languages(), LEAST_LANGUAGES):
        return dict(PARTS)
    report(
        f"{MIX}: there are too few message catalogues here (in {', '.join(CATALOGUES)} or installed packages) for text in "
        "other languages; the mix goes without. Add some with --data file:PATH."
    )
    return {name: weight for name, weight in PARTS.items() if name != "builtin:languages"}


def _enough(documents: Iterator[str], characters: int) -> bool:
    total = 0
    for document in documents:
        total += len(document)
        if total >= characters:
            return True
    return False


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _shuffled(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
