"""How far a metric may move: defaults, and a TOML file that changes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from spectralquant.errors import InputError, did_you_mean
from spectralquant.files import read_toml

WORSE = ("up", "down", "both")


@dataclass(frozen=True)
class Limit:
    """worse: the direction that counts. A figure may move by `absolute`, or by `relative` of the baseline if that is more;
    times by `relative`."""

    worse: str = "both"
    absolute: float = 0.0
    relative: float = 0.0

    def allowed(self, baseline: float) -> float:
        """How much a deterministic figure may move."""
        return max(self.absolute, self.relative * abs(baseline))


# By the last part of a metric's name. Bytes and ratios are deterministic up to the last digits of a float on another CPU.
DEFAULTS = {
    "payload_ratio": Limit("down", 0.0, 0.03),
    "whole_cache_ratio": Limit("down", 0.0, 0.03),
    "resident_ratio": Limit("down", 0.0, 0.03),
    "resident_bytes": Limit("up", 0.0, 0.03),
    "bytes_read": Limit("up", 0.0, 0.0),
    "bytes_share_of_dense": Limit("up", 1e-9, 0.0),
    "kl_nats": Limit("up", 2e-4, 0.10),
    "delta_ppl": Limit("up", 0.03, 0.10),
    "top1": Limit("down", 0.01, 0.0),
    "needle": Limit("down", 0.05, 0.0),
    "relative_error": Limit("both", 0.0, 0.10),
    "reported_over_counted": Limit("both", 0.02, 0.0),
    "coded_tokens": Limit("both", 0.0, 0.0),
    "works": Limit("down", 0.0, 0.0),
    "round_trip": Limit("down", 0.0, 0.0),
    "deterministic": Limit("down", 0.0, 0.0),
    "correct": Limit("down", 0.0, 0.0),
    "time_over_dense": Limit("up", 0.0, 0.05),
    "seconds": Limit("up", 0.0, 0.05),
}
FALLBACK = Limit("both", 0.0, 0.05)


@dataclass(frozen=True)
class Limits:
    """rules: (pattern, changes) in order; the last that matches a metric's name or its last part decides each value."""

    rules: tuple[tuple[str, dict[str, float | str]], ...] = ()

    def of(self, name: str) -> Limit:
        """The limit of a metric."""
        limit = DEFAULTS.get(name.rsplit("/", 1)[-1], FALLBACK)
        for pattern, changes in self.rules:
            if _matches(pattern, name):
                limit = replace(limit, **changes)
        return limit

    def require_matches(self, names: Iterable[str]) -> None:
        """Refuse a rule that changes nothing: most likely its name is misspelt.

        Raises:
            InputError: naming the rules that match none of these metrics.
        """
        names = list(names)
        idle = [pattern for pattern, _ in self.rules if not any(_matches(pattern, name) for name in names)]
        if idle:
            fields = dict.fromkeys(name.rsplit("/", 1)[-1] for name in names)
            raise InputError(
                f"--limits: {', '.join(f'[{p}]' for p in idle)} matches no metric of the baseline, so it would limit nothing. "
                f"Its metrics end in {', '.join(fields)}.{did_you_mean(idle[0].rsplit('/', 1)[-1], fields)}"
            )


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or pattern == name.rsplit("/", 1)[-1]


def read_limits(path: str | Path) -> Limits:
    """Limits from TOML: a table a metric, last part or pattern, as in `["*/cold/kl_nats"]` with `relative = 0.05`.

    Raises:
        InputError: not readable, an unknown key, or a value that makes no sense.
    """
    rules = []
    for pattern, table in read_toml(path, "--limits").items():
        if not isinstance(table, dict):
            raise InputError(
                f'--limits {path}: {pattern} is no table. Write ["{pattern}"] and relative = 0.05 below it.'
            )
        for key, value in table.items():
            if key not in ("worse", "absolute", "relative"):
                known = ("worse", "absolute", "relative")
                raise InputError(
                    f"--limits {path}: [{pattern}] has no {key!r}; it takes {', '.join(known)}.{did_you_mean(key, known)}"
                )
            good = value in WORSE if key == "worse" else isinstance(value, (int, float)) and 0 <= value < float("inf")
            if not good or isinstance(value, bool):
                wanted = f"one of {', '.join(WORSE)}" if key == "worse" else "a number that is not negative"
                raise InputError(f"--limits {path}: {key} = {value!r} in [{pattern}] must be {wanted}.")
        rules.append((pattern, table))
    return Limits(tuple(rules))
