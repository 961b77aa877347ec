"""A page must not take the name of a file of another kind, and replace it."""

from __future__ import annotations

from pathlib import Path

OTHERS = (".json", ".safetensors", ".sqkv", ".csv", ".svg")


def require_page_name(option: str, path: Path | None) -> None:
    """Refuse a page whose name ends as results, profiles, packets, tables and pictures do.

    Raises:
        InputError: it does.
    """
    from spectralquant.errors import InputError

    if path is not None and path.suffix.lower() in OTHERS:
        raise InputError(f"{option} {path} has the name of a file of another kind, and a page is HTML. Name it .html.")
