"""What was aimed at and is not reached, with the figure: kept beside the figures that are."""

from __future__ import annotations

from collections.abc import Callable

from research.readme.tools import load, table

Aim = tuple[str, str, str, float, Callable[[float], str]]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


MOST: tuple[Aim, ...] = (
    ("KL of an index that reads 5 % of the bytes, SmolLM2", "generate-h100", "index_kl_nats", 0.0125, _number),
    ("first calls of a new process, s", "generate-h100", "first_calls_s", 10, _number),
    ("the same from the cache on disk, s", "generate-h100", "first_calls_cached_s", 1, _number),
    ("largest KL of the general profile on eight texts", "quality", "general_max_kl", 0.0125, _number),
    ("KL over the bound, worst of 21 texts", "quality", "bound_exceeded_max_share", 0.25, _percent),
    (
        "prefill longer by writing the cold tier, 8,192 tokens",
        "cold-speed-h100",
        "prefill_longer_share",
        0.15,
        _percent,
    ),
    ("streams, share of a packet", "cold-speed-h100", "streams_overhead_share", 0.01, _percent),
)
LEAST: tuple[Aim, ...] = (
    ("own profile at KL 0.01, Gemma 3 270M", "quality", "ratio_at_kl_0.01_gemma3", 60, _number),
    ("general profile, kinds in the mix", "quality", "general_in_mix_min_ratio", 45, _number),
    (
        "decoding in vLLM with the tier over without, nothing to store, beside two other engines",
        "serving-h100",
        "decode_over_recompute",
        0.98,
        _number,
    ),
    ("the same while prompts are stored", "serving-h100", "decode_storing_over_recompute", 0.98, _number),
    (
        "decoding with the tier over without, alone on the GPU",
        "serving-h100",
        "decode_alone_over_recompute",
        0.98,
        _number,
    ),
    ("the same while prompts are stored, alone", "serving-h100", "decode_alone_storing_over_recompute", 0.98, _number),
    ("calibration on two GPUs, efficiency", "calibrate-scale", "scaling_efficiency_2", 0.9, _number),
    ("calibration on four GPUs, efficiency", "calibrate-scale", "scaling_efficiency_4", 0.85, _number),
    ("calibration of a 70B shape", "calibrate-scale", "seconds_70b_100_steps", 0, _number),
)


def shortfalls() -> str:
    """A row an aim that is missed or not measured; reached ones leave the table by themselves."""
    body = []
    for aims, word, missed in ((MOST, "at most", lambda v, a: v > a), (LEAST, "at least", lambda v, a: v < a)):
        for said, name, field, aim, text in aims:
            value = load(name)["summary"][field]
            if value is None or missed(value, aim):
                asked = f"{word} {text(aim)}" if aim else "a time"
                body.append([said, "not run" if value is None else text(value), asked, f"`{name}.json`"])
    return table(["what", "measured", "aimed at", "file"], body)
