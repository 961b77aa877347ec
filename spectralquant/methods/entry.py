"""`MethodEntry`: what a method's file says about it. The registry collects the `METHOD` of every file in `coding/` and `eviction/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from spectralquant.methods.base import AnyMethod

Build = Callable[..., AnyMethod]
Budget = Mapping[str, Any]


@dataclass(frozen=True)
class MethodEntry:
    """A method by its name.

    Args:
        source: the paper or package that it follows.
        options: names and types of what a user may set.
        budgets: the options that are measured where a user names the method alone.
        build: `build(context, **options)` makes the method for a model (`MethodContext`).
        check: `check(**options)` raises InputError for values out of range before a model is loaded; None where only a
            model can tell.
    """

    name: str
    summary: str
    source: str
    build: Build
    options: Mapping[str, type] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ({},)
    check: Callable[..., object] | None = None


def plain(kind: Any, summary: str, source: str, budgets: tuple[Budget, ...] = ({},)) -> MethodEntry:
    """The entry of a dataclass that needs no model: its fields are its options, and it refuses what is out of range."""
    types = get_type_hints(kind)
    options = {f.name: types[f.name] for f in fields(kind)}
    return MethodEntry(kind.name, summary, source, lambda context, **given: kind(**given), options, budgets, kind)
