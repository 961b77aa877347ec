"""Files to characters: compression and encoding are told from the bytes, never from the name, and never guessed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from spectralquant.errors import SourceError

HEAD = 1 << 13
CHUNK = 1 << 20
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow"}
FOREIGN = {
    b"PK\x03\x04": "a zip archive or an office document; unpack it or export it as text",
    b"PK\x05\x06": "an empty zip archive",
    b"%PDF": "a PDF document; export it as text",
    b"{\\rtf": "an RTF document; export it as text",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GGUF": "a GGUF model; pass it as --model",
    b"SQLite format 3": "an SQLite data base; export a table as CSV",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"\x1f\x9d": "a file of the old compress; unpack it and use gzip or zstd",
    b"\x80\x02": "a Python pickle; write it as JSON lines",
    b"\x80\x04": "a Python pickle; write it as JSON lines",
    b"\x80\x05": "a Python pickle; write it as JSON lines",
}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONVERT = "If it is Windows-1252 or Latin-1, convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW."


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The content of a file; gzip, bzip2, xz, zstandard and lz4 are unpacked on the way.

    Raises:
        SourceError: it cannot be opened.
    """
    with guarded(path), open(path, "rb", buffering=HEAD) as raw:
        head = raw.peek(8)[:8]
        stream: BinaryIO = raw
        if head.startswith(b"\x1f\x8b"):
            stream = gzip.GzipFile(fileobj=raw)
        elif head.startswith(b"BZh"):
            stream = bz2.BZ2File(raw)
        elif head.startswith(b"\xfd7zXZ"):
            stream = lzma.open(raw)  # noqa: SIM115 (closed with the file below it)
        elif head.startswith((b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")):
            import pyarrow

            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd" if head[0] == 0x28 else "lz4")
        yield io.BufferedReader(stream, HEAD)  # type: ignore[type-var]


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Errors of the system and of damaged archives as one line."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise SourceError(f"{path} is damaged: it cannot be unpacked ({str(error).rstrip('.')}).") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or str(error).rstrip('.')}.") from error


def table_kind(stream: io.BufferedReader) -> str | None:
    """`parquet` or `arrow`, by the first bytes."""
    head = stream.peek(8)
    return next((kind for magic, kind in TABLES.items() if head.startswith(magic)), None)


def encoding_of(stream: io.BufferedReader, where: Path) -> str:
    """The encoding, by byte order mark, or by the zeros of UTF-16 without one; else UTF-8 (checked while it is read).

    Raises:
        SourceError: empty, or not text.
    """
    head = stream.peek(HEAD)[:HEAD]
    if not head:
        raise SourceError(f"{where} is empty. Calibration and prompts need text.")
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    what = binary_kind(head)
    if what is not None:
        raise SourceError(f"{where} is not text but {what}.")
    if 0 in head:
        return "utf-16-le" if 0 in head[1::2] else "utf-16-be"
    return "utf-8"


def binary_kind(head: bytes) -> str | None:
    """What a file is that is no text, by its first bytes; None for text."""
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and pass the folder"
    if any(head.startswith(mark) for mark, _ in MARKS):
        return None
    control = sum(byte < 32 and byte not in b"\0\t\n\r\f\b\x1b" for byte in head)
    zeros = [head[start::2].count(0) for start in (0, 1)]
    half = max(1, len(head) // 2)
    utf16 = max(zeros) >= 0.4 * half and min(zeros) <= 0.02 * half
    if (any(zeros) and not utf16) or control > 0.05 * len(head):
        return "a binary file"
    return None


def characters(stream: io.BufferedReader, encoding: str, where: Path) -> Iterator[str]:
    """The text in chunks, line ends as `\\n`.

    Raises:
        SourceError: bytes that are not text in this encoding, with their place.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    fed, lines = 0, 1
    while True:
        data = stream.read(CHUNK)
        fed += len(data)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            lines += error.object[: error.start].count(b"\n")
            raise not_text(
                where, f"byte {fed - len(error.object) + error.start:,}, line {lines:,}", encoding
            ) from error
        lines += text.count("\n")
        if text:
            yield text
        if not data:
            return


def text_lines(stream: io.BufferedReader, encoding: str, where: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1 on, line ends kept.

    Raises:
        SourceError: bytes that are not text in this encoding, with the line's number.
    """
    number = 0
    if not encoding.startswith("utf-8"):
        wrapped = io.TextIOWrapper(stream, encoding, newline="\n")
        try:
            for number, line in enumerate(wrapped, 1):
                yield number, line
        except UnicodeDecodeError as error:
            raise not_text(where, f"after line {number:,}", encoding) from error
        finally:
            wrapped.detach()
        return
    for number, data in enumerate(stream, 1):
        try:
            yield number, data.decode(encoding if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_text(where, f"line {number:,}, byte {error.start:,} of it", encoding) from error


def not_text(where: Path, place: str, encoding: str) -> SourceError:
    """The error for bytes that cannot be decoded."""
    name = encoding.upper().removesuffix("-SIG").removesuffix("-LE").removesuffix("-BE")
    return SourceError(f"{where} is not {name} text ({place}). {CONVERT}")


def read_text_file(path: Path) -> str:
    """A whole text file, for prompts: UTF-8, or UTF-16 and UTF-32 where that is certain.

    Raises:
        SourceError: not there, empty, not text, or in another encoding; the message says which and what to do.
    """
    if path.is_dir():
        raise SourceError(f"{path} is a folder. Pass a text file.")
    if not path.exists():
        raise SourceError(f"There is no file {path}. Check the path.")
    with open_bytes(path) as stream:
        kind = table_kind(stream)
        if kind is not None:
            raise SourceError(f"{path} is not text but a {kind} table. A prompt is a text file.")
        return "".join(characters(stream, encoding_of(stream, path), path))
