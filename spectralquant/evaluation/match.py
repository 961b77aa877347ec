"""Reading several curves at equal quality: how many times smaller is one method than another."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from spectralquant.errors import InputError
from spectralquant.evaluation.curve import ratio_at_kl
from spectralquant.results.quality import MatchedRow, MethodRow

FINE_BITS = 8


def parse_match(text: str) -> float:
    """The KL of `kl=0.01`.

    Raises:
        InputError: something else.
    """
    found = re.fullmatch(r"kl=([0-9.eE+-]+)", text.strip())
    try:
        value = float(found[1]) if found else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f"--match {text!r} must be kl=VALUE, as kl=0.01 (nats per token).")
    return value


def matched(rows: Sequence[MethodRow], kl: float) -> list[MatchedRow]:
    """Per method and context the payload ratio at this KL, interpolated between its budgets, best first.

    `bound` is "at least" where all points of a method are better than the KL (its smallest code then stands for it),
    and "never" where none is good enough.
    """
    out = []
    curves: dict[tuple[int, str, str], list[MethodRow]] = {}
    for row in rows:
        if not row.failed and row.method != "none":
            curves.setdefault((row.context, mode_of_row(row), curve_name(row)), []).append(row)
    for (context, mode, name), points in curves.items():
        ratio, bound = _at(points, "payload_ratio", kl)
        whole, _ = _at(points, "whole_cache_ratio", kl)
        row = MatchedRow(context=context, mode=mode, method=name, kl_nats=kl, payload_ratio=ratio, bound=bound)
        row.whole_cache_ratio = whole
        out.append(row)
    return sorted(out, key=lambda r: (r.context, r.mode or "", -(r.payload_ratio or 0)))


def mode_of_row(row: MethodRow) -> str:
    """The protocol of a row; files from before there were two say nothing."""
    return row.mode or "streaming"


def _at(points: Sequence[MethodRow], name: str, kl: float) -> tuple[float | None, str]:
    """A ratio at a KL, and what is known of it."""
    some = [p for p in points if p.get(name) is not None]
    ratio = ratio_at_kl([p for p in some if p.kl_nats > 0], kl, name) if len(some) > 1 else None
    if ratio is not None:
        return ratio, "interpolated"
    good = [p[name] for p in some if p.kl_nats <= kl and math.isfinite(p[name])]
    return (max(good), "at least") if good else (None, "never")


def curve_name(row: MethodRow) -> str:
    """Rows of one name form a curve: the method, with the options that are not its budget."""
    options = row.options
    parts = [row.method]
    parts += [str(options[key]) for key in ("tier", "backend", "variant") if key in options]
    if "outliers" in options:
        parts.append("outliers" if options.get("outlier_bits") == FINE_BITS else "paper outliers")
    if options.get("exact_bits") == 8:
        parts.append("int8 window")
    return " ".join(parts)


def pareto(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Rows that no other row of the same context and protocol beats in both payload ratio and KL."""
    good = [r for r in rows if not r.failed and r.method != "none"]

    def beaten(row: MethodRow) -> bool:
        return any(
            (o.context, mode_of_row(o)) == (row.context, mode_of_row(row))
            and o.payload_ratio >= row.payload_ratio
            and o.kl_nats <= row.kl_nats
            and (o.payload_ratio, -o.kl_nats) != (row.payload_ratio, -row.kl_nats)
            for o in good
        )

    return [r for r in good if not beaten(r)]
