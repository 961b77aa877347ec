"""The environment variable that names the hot pages' profile, as plugins are told things."""

from __future__ import annotations

import os

VARIABLE = "SPECTRALQUANT_HOT_PROFILE"


def hot_profile() -> str:
    """The profile's path, or nothing."""
    return os.environ.get(VARIABLE, "")
