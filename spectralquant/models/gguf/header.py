"""The scalar metadata of a GGUF file, read in a moment (the reader of `gguf` lists every token of the vocabulary).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from spectralquant.errors import SourceError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LONGEST_KEY, MOST_KEYS = 1 << 16, 1 << 16


def gguf_metadata(path: Path) -> dict[str, Any]:
    """Numbers, truth values and strings by key; arrays are left out.

    Raises:
        SourceError: not a GGUF file, or a damaged one.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF" or version not in (2, 3) or count > MOST_KEYS:
                raise SourceError(f"{path} is not a GGUF file of version 2 or 3. Check the file.")
            found = {}
            for _ in range(count):
                key = _string(file, LONGEST_KEY).decode()
                value = _value(file, _number(file, "I"), size)
                if value is not None:
                    found[key] = value
            return found
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (struct.error, ValueError, KeyError) as error:
        raise SourceError(f"{path} is not a whole GGUF file: its header ends early or is damaged.") from error


def _value(file: BinaryIO, kind: int, size: int) -> Any:
    if kind in SCALARS:
        return _number(file, SCALARS[kind])
    if kind == STRING:
        return _string(file, size).decode(errors="replace")
    if kind != ARRAY:
        raise ValueError(kind)
    of, count = _number(file, "I"), _number(file, "Q")
    if count > size:
        raise ValueError(count)
    if of in SCALARS:
        file.seek(count * struct.calcsize(SCALARS[of]), os.SEEK_CUR)
        return None
    for _ in range(count):
        _value(file, of, size)
    return None


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]


def _string(file: BinaryIO, most: int) -> bytes:
    length = _number(file, "Q")
    if length > most:
        raise ValueError(length)
    return file.read(length)
