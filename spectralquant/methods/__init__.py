"""Compression methods behind one interface: `spectralquant.methods.get("turboquant", bits=4)`."""

from __future__ import annotations

from typing import Any


def get(name: str, **options: Any):
    """A method by name; see `spectralquant.methods.registry.get`."""
    from spectralquant.methods.registry import get as find

    return find(name, **options)
