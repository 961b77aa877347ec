"""Text to calibrate and measure on: built-in, files, and hub data sets (streamed)."""

from __future__ import annotations

import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from spectralquant.errors import InputError, SourceError, did_you_mean

BUILTIN = ("builtin:pydoc", "builtin:stdlib")
COLUMNS = ("text", "content", "prompt", "body", "document")


def load_text(spec: str, *, offline: bool = False) -> Iterator[str]:
    """Yield the documents of `builtin:pydoc`, `builtin:stdlib`, `file:PATH` or `hub:NAME[:config][:split][:column]`.

    Files may be plain text (one document), jsonl or parquet (the first of the columns text, content, …).

    Raises:
        SourceError: not found, not readable, or without text.
    """
    if spec == "builtin:pydoc":
        return _pydoc()
    if spec == "builtin:stdlib":
        return _stdlib()
    if spec.startswith("file:"):
        return _file(Path(spec.removeprefix("file:")).expanduser())
    if spec.startswith("hub:"):
        return _hub(spec.removeprefix("hub:"), offline)
    hint = f" For a file, write file:{spec}." if Path(spec).exists() else did_you_mean(spec, BUILTIN)
    raise InputError(f"--data {spec!r} is not one of {', '.join(BUILTIN)}, file:PATH, hub:NAME.{hint}")


def _pydoc() -> Iterator[str]:
    """Python's own manual: 465,000 characters of English technical prose in every CPython."""
    from pydoc_data import topics

    return (topics.topics[name] for name in sorted(topics.topics))


def _stdlib() -> Iterator[str]:
    """The standard library's sources, in alphabetical order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def _file(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise SourceError(f"There is no file {path}. Check the path after file:.")
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty. Calibration needs text.")
    if path.suffix in {".jsonl", ".json", ".parquet"}:
        return _columns("parquet" if path.suffix == ".parquet" else "json", str(path))
    try:
        return iter([path.read_text(encoding="utf-8")])
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not UTF-8 text (byte {error.start}). Convert it, or pass jsonl or parquet."
        ) from error


def _columns(builder: str, path: str) -> Iterator[str]:
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = iter(datasets.load_dataset(builder, data_files=path, split="train", streaming=True))
        first = next(rows, None)
    except Exception as error:  # pyarrow and json raise many kinds for damaged files
        raise SourceError(f"{path} cannot be read as {builder}: {str(error).splitlines()[0]}") from error
    return _text_column(rows, first, path, None)


def _hub(rest: str, offline: bool) -> Iterator[str]:
    import datasets

    datasets.disable_progress_bars()
    name, config, split, column = (rest.split(":") + [""] * 3)[:4]
    if offline or os.environ.get("HF_HUB_OFFLINE"):
        raise SourceError(
            f"hub:{name} needs the network and --offline (or HF_HUB_OFFLINE) forbids it. "
            "Use file:PATH or builtin:pydoc."
        )
    try:
        rows = iter(datasets.load_dataset(name, config or None, split=split or "train", streaming=True))
        first = next(rows, None)
    except Exception as error:  # datasets raises network, file and value errors alike
        raise SourceError(
            f"hub:{name} cannot be read: {str(error).splitlines()[0]} Check the name, config and split "
            "(hub:NAME:config:split:column) and the network."
        ) from error
    return _text_column(rows, first, f"hub:{name}", column or None)


def _text_column(rows: Iterator[dict], first: dict | None, where: str, column: str | None) -> Iterator[str]:
    if first is None:
        raise SourceError(f"{where} holds no rows. Calibration needs text.")
    names = [column] if column else [c for c in COLUMNS if c in first]
    if not names or names[0] not in first:
        raise SourceError(
            f"{where} has no text column {column or ' / '.join(COLUMNS)}; it has {', '.join(first)}. "
            "Rename one, or name it as hub:NAME:config:split:column."
        )
    return (str(row[names[0]]) for row in itertools.chain([first], rows) if row[names[0]])
