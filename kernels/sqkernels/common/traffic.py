"""Bytes that kernels read and write, counted from the arguments of their launches.

A tensor counts once with its whole size, however many programs read it (the level-2 cache serves them); what one kernel
writes and the next reads counts twice. Codes count by token, with every slot of a page. `launch_metadata` and the functions
that predict traffic use the same counts: the second build the arguments without memory (see `meta`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqkernels.common.layout import PAGE

Arguments = Mapping[str, Any]
PREPARED = (
    "Q",
    "SK",
    "SV",
    "WK",
    "WV",
    "KEY_DECODE",
    "KEY_CONSTANT",
    "LATENTS",
    "CONSTANT",
    "PART_EXACT",
    "STATS_EXACT",
)
REDUCED = ("PART", "STATS", "PART_EXACT", "STATS_EXACT", "VALUE_DECODE", "VALUE_CONSTANT", "OUT")


def tensor_bytes(arguments: Arguments, *names: str) -> int:
    """Bytes of the tensors of these names."""
    return sum(arguments[n].numel() * arguments[n].element_size() for n in names)


def slots(arguments: Arguments) -> int:
    """Slots of all pages of all sequences."""
    return arguments["PAGES"].numel() * PAGE


def prepare_bytes(arguments: Arguments) -> int:
    """Of `prepare_kernel`."""
    return tensor_bytes(arguments, *PREPARED)


def prepare_flops(arguments: Arguments) -> int:
    """Multiplications and additions of attention to exact tokens."""
    heads, tokens = arguments["Q"].shape[0] * arguments["Q"].shape[1], arguments["sinks"] + arguments["window"]
    return 4 * heads * tokens * arguments["D"]


def reduce_bytes(arguments: Arguments) -> int:
    """Of `reduce_kernel`."""
    return tensor_bytes(arguments, *REDUCED)
