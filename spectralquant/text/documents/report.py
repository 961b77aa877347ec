"""How readers tell what they left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable

Report = Callable[[str], None]


def warn(remark: str) -> None:
    """The default of the library: a Python warning."""
    warnings.warn(remark, UserWarning, stacklevel=2)
