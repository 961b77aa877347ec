"""Two results files of one command, figure by figure, within the stated tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from research.results.table import tolerance

LEFT_OUT = ("provenance", "telemetry", "created", "git_commit", "git_dirty")


def differences(stored: Any, anew: Any) -> list[str]:
    """Figures that differ by more than their tolerance, and figures that one of the two lacks."""
    before, now = dict(_figures(stored)), dict(_figures(anew))
    out = [f"{path}: only in the stored file" for path in before.keys() - now.keys()]
    out += [f"{path}: only in the new file" for path in now.keys() - before.keys()]
    for path in before.keys() & now.keys():
        relative, absolute = tolerance(_field(path))
        if not math.isclose(before[path], now[path], rel_tol=relative, abs_tol=absolute):
            out.append(
                f"{path}: {before[path]:.6g} stored, {now[path]:.6g} now (±{100 * relative:g} % or ±{absolute:g})"
            )
    return sorted(out)


def _figures(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a file and where it stands; commands write their rows in one order."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            if name not in LEFT_OUT:
                yield from _figures(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _figures(each, f"{path}[{place}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def _field(path: str) -> str:
    """The last name in a path: `rows[3].kl_nats_ci95[0]` is of `kl_nats_ci95`."""
    return path.rpartition(".")[2].partition("[")[0]
