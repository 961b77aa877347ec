"""Text to calibrate and measure on: built-in, files, and hub data sets, each with a weight."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spectralquant.errors import InputError, SourceError, did_you_mean
from spectralquant.text.documents.files import file_documents, is_path
from spectralquant.text.documents.hub import hub_documents
from spectralquant.text.documents.report import Report, warn
from spectralquant.text.recipes import MIX, TEXTS, mix_parts

BUILTIN = (*TEXTS, MIX)


@dataclass(frozen=True)
class TextSource:
    """An opened text: its name as in `--data`, its weight in a mix, and its documents (they can be read once)."""

    name: str
    weight: float
    documents: Iterator[str]


def load_text(spec: str | os.PathLike[str], *, offline: bool = False, report: Report = warn) -> Iterator[str]:
    """Yield the documents of a built-in text (`builtin:pydoc`, …; see `text.recipes`), `file:PATH[:COLUMN]` or
    `hub:NAME[:config][:split][:column]`.

    PATH may be a text file (large ones come in pieces), JSON, JSON Lines, CSV, TSV, parquet, arrow, any of them packed
    (gzip, zstandard, …), a folder or a glob. Rows may hold a text column, message lists, prompt and completion,
    chosen answers, or bodies of batch requests; COLUMN picks one (`body.messages`). The first document is read at once.

    Raises:
        SourceError: not found, not readable, or without text; later rows name themselves when they are reached.
    """
    documents = _documents(spec if isinstance(spec, str) else f"file:{os.fspath(spec)}", offline, report)
    read = []
    for document in documents:
        read.append(document)
        if document.strip():
            return itertools.chain(read, documents)
    raise SourceError(f"{spec}: the text is empty. Calibration and measurement need text.")


def open_sources(specs: str | Sequence[str], *, offline: bool = False, report: Report = warn) -> list[TextSource]:
    """Open texts `SPEC` or `SPEC=WEIGHT` (weight 1 where none is given); `builtin:mix` opens the texts of its recipe, which
    share its weight.

    Raises:
        InputError: no text, one given twice, or a weight that is not positive. SourceError: see `load_text`.
    """
    given = [parse_weight(spec) for spec in ([specs] if isinstance(specs, str) else specs)]
    pairs = [pair for name, weight in given for pair in _expanded(name, weight, report)]
    names = [name for name, _ in pairs]
    if not names:
        raise InputError("--data is missing: pass at least one text.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--data {twice} is given twice. Give it once with a weight, as {twice}=2.")
    return [TextSource(name, weight, load_text(name, offline=offline, report=report)) for name, weight in pairs]


def _expanded(name: str, weight: float, report: Report) -> list[tuple[str, float]]:
    if name != MIX:
        return [(name, weight)]
    parts = mix_parts(report)
    return [(part, weight * share / sum(parts.values())) for part, share in parts.items()]


def parse_weight(spec: str) -> tuple[str, float]:
    """`file:a.jsonl=3` to its name and weight; a file whose name ends so is taken for the file.

    Raises:
        InputError: a weight that is not a positive number.
    """
    name, equals, number = spec.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = None
    if not equals or not name or weight is None or is_path(spec.removeprefix("file:")):
        return spec, 1.0
    if not (weight > 0 and math.isfinite(weight)):
        raise InputError(f"--data {spec}: the weight {number} must be a positive number, as {name}=3.")
    return name, weight


def text_name(sources: Sequence[TextSource]) -> str:
    """One name for a mix: `file:a.jsonl=3 + builtin:pydoc=1`; a single text has no weight."""
    if len(sources) == 1:
        return sources[0].name
    return " + ".join(f"{s.name}={s.weight:g}" for s in sources)


def require_name(spec: str) -> None:
    """Check what a text is called, and its weight; nothing is read.

    Raises:
        InputError: there is no text of that name, or its weight is not positive.
    """
    name, _ = parse_weight(spec)
    if name not in BUILTIN and not name.startswith(("file:", "hub:")) and not is_path(name):
        raise _unknown(name)


def _unknown(spec: str) -> InputError:
    return InputError(
        f"Text {spec!r} is not one of {', '.join(BUILTIN)}, file:PATH, hub:NAME, and there is no such file."
        f"{did_you_mean(spec, BUILTIN)}"
    )


def _documents(spec: str, offline: bool, report: Report) -> Iterator[str]:
    if spec in TEXTS:
        return TEXTS[spec]()
    if spec == MIX:
        turns = itertools.zip_longest(*(TEXTS[part]() for part in mix_parts(report)))
        return (document for turn in turns for document in turn if document is not None)
    if spec == "file:":
        raise InputError(
            "--data file: names no file. Pass file:PATH, as file:tickets.jsonl (the current folder is file:.)."
        )
    if spec.startswith("file:"):
        return file_documents(spec.removeprefix("file:"), report)
    if spec.startswith("hub:"):
        return hub_documents(spec.removeprefix("hub:"), offline, report)
    if spec and not spec.startswith("builtin:") and is_path(spec):
        return file_documents(spec, report)
    raise _unknown(spec)
