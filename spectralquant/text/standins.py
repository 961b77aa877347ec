"""Stand-ins for text that no Python carries: other languages and scripts, made of text that it does.

A language that a model hardly knows looks to it like words of unknown letters; text in another script is pieces of a few bytes.
Letters of a text are replaced by fixed rules, so that what repeats in it still repeats. Calibration for a bound measures
errors on them (`calibrating.promise`); bases and tables are never fitted to them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

VOWELS, CONSONANTS = "aeiouy", "bcdfghjklmnpqrstvwxz"
LATIN = "abcdefghijklmnopqrstuvwxyz"
CYRILLIC = "абцдефгхийклмнопярстувшчыз"
FIRST_IDEOGRAPH, IDEOGRAPHS = 0x4E00, 3000
REPEATED = 1500


def other_letters(text: str) -> str:
    """Vowels for vowels and consonants for consonants: words that can be read and mean nothing."""
    turned = {a: b for row, by in ((VOWELS, 2), (CONSONANTS, 7)) for a, b in zip(row, row[by:] + row[:by], strict=True)}
    return text.translate(_both_cases(turned))


def other_alphabet(text: str) -> str:
    """Cyrillic letters for Latin ones."""
    return text.translate(_both_cases(dict(zip(LATIN, CYRILLIC, strict=True))))


def other_script(text: str) -> str:
    """One to three ideographs for a word, without spaces between them."""

    def ideographs(match: re.Match[str]) -> str:
        word = match.group().lower()
        return "".join(
            chr(FIRST_IDEOGRAPH + zlib.crc32(word[i : i + 3].encode()) % IDEOGRAPHS) for i in range(0, len(word), 3)
        )

    return re.sub(r"(?<=\w) (?=\w)", "", re.sub(r"[A-Za-z]+", ideographs, text))


def repeated(text: str) -> str:
    """The text's beginning, again and again."""
    return text[:REPEATED] * (len(text) // REPEATED)


STAND_INS: dict[str, Callable[[str], str]] = {
    "made: other letters": other_letters,
    "made: other alphabet": other_alphabet,
    "made: other script": other_script,
    "made: repeated": repeated,
}


def _both_cases(turned: dict[str, str]) -> dict[int, str]:
    return str.maketrans(turned | {a.upper(): b.upper() for a, b in turned.items()})
