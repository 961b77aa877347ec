"""The profile whose codes stand in an engine's pages: what cannot is refused before an engine starts."""

from __future__ import annotations

import functools

from spectralquant.errors import ProfileError
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.tensors import FixedTier


@functools.cache
def pages_profile(path: str) -> CalibrationProfile:
    """The profile at `path`, loaded once a process.

    Raises:
        ProfileError: missing, damaged, calibrated for caches of transformers, or see `pages_tier`.
    """
    profile = CalibrationProfile.load(path)
    pages_tier(profile)
    profile.require_serving()
    return profile


def pages_tier(profile: CalibrationProfile) -> FixedTier:
    """Its hot tier.

    Raises:
        ProfileError: it was calibrated without one, or with one that keeps layers apart.
    """
    tier = profile.tier("hot")
    if not isinstance(tier, FixedTier):
        raise ProfileError(
            "This profile's hot tier keeps layers apart, which an engine's pages do not. Calibrate again."
        )
    return tier
