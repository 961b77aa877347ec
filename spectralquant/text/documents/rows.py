"""Rows of JSON, JSON Lines and CSV files, one by one, each with its number; and of tables.

JSON and CSV are read here and not by `datasets`: a row's fault has to name the row, text has to stay text (readers of
tables turn 007 into 7.0 and NA into nothing), and message lists of mixed form have no column type. Arrow files, folders
that `datasets` saved and the hub are its own.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from spectralquant.errors import SourceError
from spectralquant.text.documents.encoding import CHUNK, characters, encoding_of, open_bytes, text_lines

Row = tuple[int, str, Any]
NEAR_END = 64
BATCH = 256
BETWEEN = re.compile("[ \\t\\r\\n,\ufeff]*")


def json_rows(path: Path) -> Iterator[Row]:
    """Rows (number, place, value) of JSON Lines, of one JSON array, or of JSON values one after the other.

    Raises:
        SourceError: damaged; it names the row.
    """
    with open_bytes(path) as stream:
        encoding = encoding_of(stream, path)
        start = _start(stream.peek(1 << 12), encoding)
        if start == "[" and not _lists_in_lines(stream.peek(1 << 12), encoding):
            yield from _values(characters(stream, encoding, path), path)
            return
        lines = text_lines(stream, encoding, path)
        held: list[str] = []
        for number, line in lines:
            if not line.strip():
                continue
            try:
                first = json.loads(line)
            except (ValueError, RecursionError) as error:
                if line.strip() not in ("{", "[") and not (line.lstrip()[0] == "{" and line.rstrip()[-1] in ",{["):
                    raise _bad_json(path, 1, number, error) from None
                held = [line]
                break
            yield 1, _line(number, 1), first
            row = 1
            for number, line in lines:
                if line.strip():
                    row += 1
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise _bad_json(path, row, number, error) from None
                    yield row, _line(number, row), value
            return
        yield from _values(itertools.chain(held, (line for _, line in lines)), path)


def csv_rows(path: Path, *, tab: bool) -> Iterator[Row]:
    """Rows (number, place, {column: text}) of a table with a header; the separator of `.csv` is told from the header.

    Raises:
        SourceError: damaged, or a row with more or fewer cells than the header; it names the row.
    """
    csv.field_size_limit(2**31 - 1)
    with open_bytes(path) as stream:
        lines = (line for _, line in text_lines(stream, encoding_of(stream, path), path))
        first = next((line for line in lines if line.strip()), "")
        separator = "\t" if tab else max(",;\t|", key=first.count)
        reader = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
        number = 0
        try:
            header = next(reader, [])
            twice = next((name for name in header if header.count(name) > 1), None)
            if twice is not None:
                raise SourceError(f"{path} has two columns {twice!r} in its header. Rename one.")
            for number, cells in enumerate(filter(None, reader), 1):
                place = f" (line {reader.line_num:,})"
                if len(cells) != len(header):
                    raise SourceError(
                        f"{path}, row {number:,}{place} has {len(cells)} cells, the header has {len(header)}. Put cells "
                        f"that hold {'tabs' if separator == chr(9) else repr(separator)} or line ends in double quotes."
                    )
                yield number, place, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise SourceError(
                f"{path}, row {number + 1:,} (line {reader.line_num:,}) cannot be read as CSV: {error}."
            ) from error


def table_rows(path: Path, kind: str) -> Iterator[Row]:
    """Rows of a `parquet` or `arrow` file, streamed.

    Raises:
        SourceError: damaged.
    """
    load = _parquet if kind == "parquet" else _arrow
    yield from guarded_rows(lambda: load(path), f"{path} cannot be read as {kind}")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    # not by datasets: it unpacks a row group, often the whole file, at once
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, pre_buffer=False, buffer_size=CHUNK) as file:
        for batch in file.iter_batches(BATCH):
            yield from batch.to_pylist()


def _arrow(path: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset("arrow", data_files=str(path), split="train", streaming=True)


def saved_rows(folder: Path) -> Iterator[Row]:
    """Rows of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        SourceError: damaged, or a dictionary of splits.
    """
    import datasets

    if (folder / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise SourceError(
            f"{folder} holds several splits. Pass one: {', '.join(f'file:{folder / s}' for s in splits)}."
        )
    yield from guarded_rows(lambda: datasets.load_from_disk(str(folder)), f"{folder} cannot be read")


def guarded_rows(load: Any, what: str) -> Iterator[Row]:
    """Rows of what `load` returns; whatever `datasets` raises becomes one line that names the row.

    Raises:
        SourceError: beginning with `what`.
    """
    number = 0
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it logs what it then raises
    try:
        for number, row in enumerate(load(), 1):
            yield number, "", row
    except Exception as error:  # datasets, pyarrow and fsspec raise many kinds for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        after = f" after row {number:,}" if number else ""
        raise SourceError(f"{what}{after}: {reason}.") from error
    finally:
        logger.setLevel(level)


def _start(head: bytes, encoding: str) -> str:
    """The first character that is not blank."""
    return head.decode(encoding, "ignore").lstrip("\ufeff \t\r\n")[:1]


def _lists_in_lines(head: bytes, encoding: str) -> bool:
    """Whether every line is a JSON array of its own (a conversation a line)."""
    lines = [line for line in io.StringIO(head.decode(encoding, "ignore").lstrip("\ufeff")) if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return isinstance(json.loads(lines[0]), list) and lines[1].lstrip()[:1] == "["
    except (ValueError, RecursionError):
        return False


def _values(chunks: Iterable[str], path: Path) -> Iterator[Row]:
    """Values of one JSON array, or values one after the other, decoded as they arrive."""
    decoder, source = json.JSONDecoder(), iter(chunks)
    held, at, row = "", 0, 0
    array: bool | None = None
    more = True
    while True:
        at = BETWEEN.match(held, at).end()  # type: ignore[union-attr]
        if array is None and at < len(held):
            array = held[at] == "["
            at += array
            continue
        if array and held.startswith("]", at):
            return
        if at < len(held):
            try:
                value, end = decoder.raw_decode(held, at)
            except (ValueError, RecursionError) as error:
                if not (more and _cut_off(error, len(held))):
                    raise _bad_json(path, row + 1, None, error) from None
            else:
                if end < len(held) or not more:
                    row += 1
                    yield row, "", value
                    at = end
                    continue
        elif not more:
            if array:
                raise SourceError(f"{path} ends within its JSON array, after row {row:,}: it is cut off.")
            return
        added = list(itertools.islice(source, 1 + (len(held) - at) // CHUNK))
        held, at, more = held[at:] + "".join(added), 0, bool(added)


def _cut_off(error: Exception, length: int) -> bool:
    """Whether more text could mend what cannot be decoded yet."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos > length - NEAR_END or error.msg.startswith("Unterminated string")


def _bad_json(path: Path, row: int, line: int | None, error: Exception) -> SourceError:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    place = "" if line is None else _line(line, row)
    return SourceError(f"{path}, row {row:,}{place} cannot be read as JSON: {reason}. Correct or remove it.")


def _line(number: int, row: int) -> str:
    return f" (line {number:,})" if number != row else ""
