"""Sizes as people write them."""

from __future__ import annotations

import re

from spectralquant.errors import InputError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


MOST = 2**60


def parse_size(text: str, option: str) -> int:
    """Bytes of `20MB`, `512KiB`, `1.5GB`.

    Raises:
        InputError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS:
        raise InputError(f"{option} {text!r} is not a size; write it as in 20MB or 512KiB.")
    size = float(match[1]) * UNITS[match[2].upper()]
    if size > MOST:
        raise InputError(f"{option} {text!r} is more than any machine has.")
    return int(size)
