"""Packets that commands read: what is wrong with one names its file and the way out."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from spectralquant.errors import PacketError

SECOND_SENTENCE = re.compile(r"[.)] [A-Z]")


@contextlib.contextmanager
def reading_packet(path: Path) -> Iterator[None]:
    """Around code that reads a packet.

    Raises:
        PacketError: as the code says, with the file's name and what helps.
    """
    try:
        yield
    except PacketError as error:
        said = str(error)
        if str(path) not in said:
            said = f"{path}: {said}"
        if not SECOND_SENTENCE.search(said.removeprefix(f"{path}: ")):
            other = "Name a file that `sq pack` wrote." if "not a SpectralQuant packet" in said else None
            said = f"{said} {other or 'Fetch or make the packet again.'}"
        raise PacketError(said) from error
