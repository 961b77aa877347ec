"""Where fetched models and unfinished runs live."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """`$SPECTRALQUANT_CACHE`, else the user cache folder of the platform."""
    return Path(os.environ.get("SPECTRALQUANT_CACHE") or platformdirs.user_cache_dir("spectralquant"))
