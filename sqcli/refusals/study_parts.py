"""The parts of `sq study` by study: names are judged before a model or a profile is read."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sqcli.refusals.sources import given

PARTS: dict[str, tuple[str, ...]] = {
    "quality": ("home", "general", "texts"),
    "headline": ("fit", "score", "speed"),
    "calibrate-scale": ("8b", "8b-small", "scaling", "70b", "70b-one-card", "steps", "forms", "predicted"),
    "cold-speed": ("codec", "coders", "prefill", "cpu", "blocks", "quality"),
    "serving": ("small", "large", "tp", "floor", "decode"),
    "serving-hot": ("small", "large"),
}
SHARED = ("quality", "headline")
"""Studies whose parts may be named further: texts:2/6, score:bible."""


def part_names() -> str:
    """For `--help`."""
    return ", ".join(f"`{study}` ({', '.join(parts)})" for study, parts in PARTS.items())


def parts_of(context: typer.Context, study: str, parts: list[str] | None) -> list[str] | None:
    """The parts that were asked for; those of a configuration file are not for a study that has none."""
    return parts if study in PARTS or given(context, "part") else None


def require_parts(study: str, parts: Sequence[str]) -> None:
    """Refuse parts that a study does not have.

    Raises:
        InputError: naming those that there are.
    """
    from spectralquant.errors import InputError, did_you_mean

    known = PARTS.get(study, ())
    if parts and not known:
        raise InputError(
            f"The {study} study has no parts: leave out --part {parts[0]}. Studies with parts: {', '.join(PARTS)}."
        )
    for part in parts:
        name = part.partition(":")[0] if study in SHARED else part
        if name not in known:
            raise InputError(
                f"The {study} study has no part {part!r}; there are {', '.join(known)}.{did_you_mean(name, known)}"
            )
