"""Long documents in pieces, so that a book or a dump of gigabytes is never one string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PIECE = 1 << 17


class Continuation(str):
    """A piece that goes on with the document of the piece before it."""


def in_pieces(chunks: Iterable[str], size: int = PIECE) -> Iterator[str]:
    """One document, given in chunks, as pieces of up to `size` characters (more where the chunks themselves are larger).

    Pieces end at a line where one ends, so that tokenizers find the same tokens as in the whole.
    """
    kind: type[str] = str
    held = ""
    for chunk in chunks:
        held = held + chunk if held else chunk
        while len(held) > size:
            at = _cut(held, size)
            yield kind(held[:at])
            kind, held = Continuation, held[at:]
    if held:
        yield kind(held)


def _cut(text: str, size: int) -> int:
    """Where to cut at most `size` characters off: after a line whose successor is not blank, else before a space."""
    at = text.rfind("\n", size // 2, size)
    while at > 0 and text[at + 1].isspace():
        at = text.rfind("\n", size // 2, at)
    if at > 0:
        return at + 1
    at = text.rfind(" ", size // 2, size)
    return at if at > 0 else size
