"""`file:PATH[:COLUMN]`: one file, a folder or a glob of files, as documents."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from spectralquant.errors import SourceError
from spectralquant.files import user_path
from spectralquant.text.documents.columns import RowReader
from spectralquant.text.documents.encoding import binary_kind, characters, encoding_of, open_bytes, table_kind
from spectralquant.text.documents.pieces import in_pieces
from spectralquant.text.documents.report import Report
from spectralquant.text.documents.rows import Row, csv_rows, json_rows, saved_rows, table_rows

PACKED = {".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".gzip"}
JSON = {".json", ".jsonl", ".ndjson", ".jsonlines", ".ldjson"}
CSV, TSV = {".csv"}, {".tsv", ".tab"}
TABLES = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow"}
GLOB = "*?["
JSON_START = re.compile(r'\s*(\{\s*"|\[\s*[\[{])')


def file_documents(rest: str, report: Report) -> Iterator[str]:
    """Documents of what stands after `file:`; large texts come in pieces.

    Raises:
        SourceError: not found, empty, damaged or not text.
    """
    path, column = _split(rest)
    files = _resolve(path)
    single = len(files) == 1 and files[0] == path
    found, left_out = False, []
    for file in files:
        if not single and not _saved(file) and (what := _foreign(file)):
            left_out.append(f"{file.name} ({what})")
            continue
        for document in _documents(file, column, report):
            found = found or bool(document.strip())
            yield document
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        report(f"{path}: left out files that are not text: {', '.join(left_out[:3])}{more}.")
    if not found:
        raise SourceError(f"{path}: the text is empty. Calibration and measurement need text.")


def is_path(spec: str) -> bool:
    """Whether something that has no prefix is a path that exists (also with a column, or as a glob)."""
    try:
        _resolve(_split(spec)[0])
    except SourceError:
        return False
    return True


def _split(rest: str) -> tuple[Path, str | None]:
    """The path, and the column where what stands before the last colon exists and the whole does not."""
    whole = user_path(rest)
    head, colon, tail = rest.rpartition(":")
    if not colon or not head or _exists(whole) or not tail or "/" in tail:
        return whole, None
    before = user_path(head)
    return (before, tail) if _exists(before) else (whole, None)


def _exists(path: Path) -> bool:
    try:
        return path.exists() or (any(c in str(path) for c in GLOB) and any(glob.iglob(str(path), recursive=True)))
    except (OSError, ValueError):
        return False


def _resolve(path: Path) -> list[Path]:
    """The files that a path stands for, in the order of their names; hidden ones are left out of folders."""
    if not _exists(path):
        raise SourceError(f"There is no file {path}. Check the path (file:PATH, or file:PATH:COLUMN).")
    if not path.exists():
        return [p for name in sorted(glob.glob(str(path), recursive=True)) for p in _resolve(Path(name))]
    if not path.is_dir() or _saved(path):
        return [path]
    files = []
    for folder, names, here in os.walk(path):
        names[:] = sorted(n for n in names if not n.startswith("."))
        files += [Path(folder) / n for n in sorted(here) if not n.startswith(".")]
    if not files:
        raise SourceError(f"The folder {path} holds no files.")
    return files


def _saved(path: Path) -> bool:
    return path.is_dir() and any((path / n).is_file() for n in ("state.json", "dataset_dict.json"))


def _foreign(file: Path) -> str | None:
    """What a file of a folder is, where it is neither text nor data."""
    with open_bytes(file) as stream:
        head = stream.peek(1 << 13)[: 1 << 13]
        return "empty" if not head else None if table_kind(stream) else binary_kind(head)


def _documents(file: Path, column: str | None, report: Report) -> Iterator[str]:
    rows = _rows(file)
    if rows is None:
        if column is not None:
            raise SourceError(f"{file} is plain text and has no columns; leave :{column} out.")
        yield from _plain(file, report)
        return
    yield from RowReader(str(file), column, f"file:{file}:COLUMN").documents(rows, report)


def _rows(file: Path) -> Iterator[Row] | None:
    """Rows of a data file, None for plain text. Tables are known by their content, the rest by the name."""
    if _saved(file):
        return saved_rows(file)
    suffixes = [s.lower() for s in file.suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if file.is_file():
        with open_bytes(file) as stream:
            kind = table_kind(stream)
        if kind or suffix in TABLES:
            return table_rows(file, kind or TABLES[suffix])
    if suffix in JSON:
        return json_rows(file)
    if suffix in CSV | TSV:
        return csv_rows(file, tab=suffix in TSV)
    return None


def _plain(file: Path, report: Report) -> Iterator[str]:
    with open_bytes(file) as stream:
        encoding = encoding_of(stream, file)
        first = stream.peek(1 << 12).decode(encoding, "ignore").lstrip("\ufeff")
        if JSON_START.match(first):
            report(f"{file} looks like JSON and is read as plain text; name it .jsonl or .json to read its rows.")
        yield from in_pieces(characters(stream, encoding, file))
