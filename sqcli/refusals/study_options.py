"""The options of `sq study` by study: what a study does not read is refused before a model or a text is read."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from sqcli.refusals.idle import refuse_idle

MODEL = ("model", "data", "device", "dtype")
SPLIT = ("steps", "window", "windows", "part_of_text")
READS: dict[str, tuple[str, ...]] = {
    "cold": (*MODEL, *SPLIT),
    "domains": (*MODEL, *SPLIT, "other_data"),
    "second-model": ("data", "device", "train_seconds"),
    "packet": (*MODEL, "profile", "window"),
    "tiers": (*MODEL, *SPLIT),
    "cache": (*MODEL, "profile", "window"),
    "quality": (*MODEL, *SPLIT, "profile", "other_data", "in_mix", "more", "bound", "part"),
    "headline": (*MODEL, *SPLIT, "part"),
    "index": (*MODEL, "profile", "window", "windows", "part_of_text"),
    "kernels": ("device",),
    "gate": (),
    "shapes": ("data", "device", "dtype", "steps", "window", "shape"),
    "coder": (*MODEL, "profile", "window"),
    "cold-speed": (*MODEL, "profile", "window", "part", "keep_sample"),
    "architectures": (),
    "calibrate-scale": (*MODEL, "steps", "window", "windows", "part"),
    "serving-codec": (*MODEL, *SPLIT),
    "serving": ("model", "profile", "part"),
    "serving-hot": ("model", "data", "profile", "part"),
}
SOME = frozenset({*MODEL, *SPLIT, "other_data", "in_mix", "more", "profile", "bound", "shape", "keep_sample"}) | {
    "train_seconds"
}
"""Options that some studies read; --part is judged with its name, and all others hold for every study."""
OWN_SHAPE = {"serving": ("large", "tp", "decode"), "serving-hot": ("large",)}
"""Parts that make a model and a profile of their own. Those of `serving` join the results of its part small, so the command of all
parts, with its --model and --profile, may be given for each."""

PROFILE_FREE = {"serving": ("floor",)}
"""Parts that read a model and no profile."""


def makes_its_own(study: str, parts: Sequence[str]) -> bool:
    """Whether all parts that are asked for make their own model and profile."""
    return bool(parts) and set(parts) <= set(OWN_SHAPE.get(study, ()))


def profile_free(study: str, parts: Sequence[str]) -> bool:
    """Whether no part that is asked for needs --profile."""
    return bool(parts) and set(parts) <= {*OWN_SHAPE.get(study, ()), *PROFILE_FREE.get(study, ())}


def require_read(context: typer.Context, study: str, parts: Sequence[str]) -> None:
    """Refuse options that a study, or the parts of it that are asked for, would pass over.

    Raises:
        InputError: naming them.
    """
    refuse_idle(context, SOME - set(READS[study]), f"on the {study} study")
    if study == "serving-hot" and makes_its_own(study, parts):
        refuse_idle(context, ("model", "profile"), "on the large part of serving-hot, which makes those of its shape")
