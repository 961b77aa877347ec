"""Errors a user can act on.

Every message names the constraint that was broken and the way out. The command line turns any of them into one
line on stderr and exit code 2.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

CLOSE = 0.75
LONG_ENOUGH = 3


class SpectralQuantError(Exception):
    """Base of all errors that input, files or the surroundings cause (never a bug of ours)."""


class InputError(SpectralQuantError, ValueError):
    """An argument or an option is outside what is allowed."""


class BusyError(InputError):
    """Another process works on the same files."""


class UnsupportedModelError(SpectralQuantError):
    """The model's attention cannot be calibrated or compressed; the message says why."""


class SourceError(SpectralQuantError):
    """A model or a text could not be found, fetched or read."""


class ProfileError(SpectralQuantError):
    """A calibration profile is damaged, of another schema, or belongs to another model."""


class PacketError(SpectralQuantError):
    """A packet is damaged, truncated, of another version, or was written with another profile."""


class NotCompressedWarning(UserWarning):
    """A cache did not compress (part of) what it was given; the message says why, `SpectralCache.stats()` how much."""


class UnlikeTextWarning(UserWarning):
    """A text takes many more bytes than the text that a profile was calibrated on: it is of another kind."""


class RepeatedPromptWarning(UserWarning):
    """`generate` was given a prompt that its cache holds already, so its tokens are read twice."""


class SuspectModelWarning(UserWarning):
    """The uncompressed model predicts a text hardly better than a unigram model, so figures measured with it mean little."""


def renamed(old: str, new: str, wrappers: int = 0) -> None:
    """Warn the caller's caller that it used an old name; `wrappers`: decorators' frames in between."""
    warnings.warn(f"{old} is now called {new}.", DeprecationWarning, stacklevel=3 + wrappers)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for a known word that is nearly this one, or the only one that holds it; else nothing."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=CLOSE)
    longer = [name for name in names if len(word) >= LONG_ENOUGH and word.lower() in name.lower()]
    best = close[0] if close else longer[0] if len(longer) == 1 else None
    return "" if best is None else f" Did you mean {best!r}?"
