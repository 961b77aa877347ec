"""Which tier a block goes to: by name, by age, or by what fits into a memory budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from spectralquant.errors import InputError, did_you_mean

ORDER = ("exact", "hot", "warm", "cold")


@dataclass(frozen=True)
class TierPolicy:
    """first: tier of blocks that leave the window. ages: tier → age in tokens from which blocks move there.

    max_bytes: the oldest blocks move down tier by tier until the cache fits.
    """

    first: str
    available: tuple[str, ...]
    ages: Mapping[str, int] = field(default_factory=dict)
    max_bytes: int | None = None

    def for_age(self, age: int) -> str:
        """The lowest tier that a block of this age must have reached."""
        reached = [name for name, limit in self.ages.items() if age >= limit]
        return max([self.first, *reached], key=ORDER.index)

    def below(self, tier: str) -> str | None:
        """The next tier down that the profile has, or None."""
        lower = [name for name in self.available if ORDER.index(name) > ORDER.index(tier)]
        return min(lower, key=ORDER.index, default=None)

    @staticmethod
    def lower(a: str, b: str) -> bool:
        """Whether tier `a` lies below tier `b`."""
        return ORDER.index(a) > ORDER.index(b)

    @property
    def reaches_cold(self) -> bool:
        return self.first == "cold"


def make_policy(
    tier: str, available: tuple[str, ...], ages: Mapping[str, int] | None, max_bytes: int | None
) -> TierPolicy:
    """Check names and make a policy; `auto` takes the fastest coded tier the profile has.

    Raises:
        InputError: a tier that does not exist, or that the profile lacks.
    """
    coded = [name for name in ORDER[1:] if name in available]
    if tier == "auto":
        tier = coded[0] if coded else "exact"
    for name in (tier, *(ages or {})):
        if name not in ORDER:
            raise InputError(f"tier {name!r} is not one of auto, {', '.join(ORDER)}.{did_you_mean(name, ORDER)}")
        if name != "exact" and name not in available:
            has = ", ".join(coded) or "none (no profile was given)"
            raise InputError(
                f"The profile has no {name} tier; it has {has}. Calibrate with --tier {name} or --tier all."
            )
    if max_bytes is not None and max_bytes <= 0:
        raise InputError(f"max_bytes={max_bytes} must be positive.")
    return TierPolicy(tier, available, dict(ages or {}), max_bytes)
