"""The profile a command names: another file is refused for what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectralquant.profile.model import CalibrationProfile


def load_profile(path: Path) -> CalibrationProfile:
    """Read and check a profile.

    Raises:
        InputError: a folder, results, or any file that is no profile's. ProfileError: a missing or damaged profile.
    """
    from spectralquant.profile.model import CalibrationProfile
    from sqcli.refusals.profiles import refuse_other_files

    refuse_other_files(path)
    return CalibrationProfile.load(path)
