"""May somebody else quote a result? Only if its command and its code can be had again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectralquant.errors import InputError
from spectralquant.origin.checkout import SourceCommit, note_begin, source_commit


def faults(facts: Mapping[str, Any]) -> list[str]:
    """Why a result with this provenance cannot be quoted; nothing where it can."""
    out = []
    if not facts.get("command"):
        out.append("no command made it (a notebook or a script did)")
    return out + _source_faults(SourceCommit(facts.get("git_commit"), facts.get("git_dirty")))


def marked(facts: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """A provenance with `quotable` and, where that is false, the reasons; `more` are reasons of the caller's."""
    reasons = [*faults(facts), *more]
    return {**facts, "quotable": not reasons} | ({"not_quotable": reasons} if reasons else {})


def begin(quotable: bool) -> None:
    """Called by a long command before it works: its code is that of now, which with `quotable` must be a clean commit.

    Raises:
        InputError: it is not.
    """
    note_begin()
    if quotable:
        require_quotable_source()


def require_quotable_source() -> None:
    """Before a long run whose result is to be quoted.

    Raises:
        InputError: the tree is not a clean commit.
    """
    if reasons := _source_faults(source_commit()):
        raise InputError(
            f"--quotable: the result could not be quoted: {'; '.join(reasons)}. Commit your changes first (or, in a copy "
            "without git, run `make provenance` before copying)."
        )


def _source_faults(source: SourceCommit) -> list[str]:
    if source.commit is None:
        return ["nothing tells the commit of its code"]
    if source.dirty is None:
        return [f"nothing tells whether its code was commit {source.commit[:9]} unchanged"]
    return [f"its code was changed after commit {source.commit[:9]}"] if source.dirty else []
