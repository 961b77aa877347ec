"""Every method by name, with typed options; nothing is built until a model is there. A file with a `METHOD` is a method.

`get("turboquant", bits=3)` gives a `MethodSpec`; `spec.build(context)` gives the method. `h2o+spectral` composes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spectralquant.errors import InputError, did_you_mean
from spectralquant.methods import coding, eviction
from spectralquant.methods.base import AnyMethod
from spectralquant.methods.composed import Composed
from spectralquant.methods.context import MethodContext
from spectralquant.methods.entry import MethodEntry
from spectralquant.methods.eviction.evictor import STREAMING, Evictor

FOLDERS = (coding, eviction)


def _collect() -> dict[str, MethodEntry]:
    """The entry of every file that has one, by name."""
    entries: dict[str, MethodEntry] = {}
    for folder in FOLDERS:
        for info in pkgutil.iter_modules(folder.__path__):
            entry = getattr(importlib.import_module(f"{folder.__name__}.{info.name}"), "METHOD", None)
            if entry is not None:
                if entry.name in entries:
                    raise RuntimeError(f"two files under spectralquant/methods are called {entry.name!r}")
                entries[entry.name] = entry
    return dict(sorted(entries.items()))


REGISTRY: dict[str, MethodEntry] = _collect()


@dataclass(frozen=True)
class MethodSpec:
    """A method's name and options, not yet built."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As a person would type it."""
        return self.name + "".join(
            f"{',' if i else ':'}{k}={_text(v)}" for i, (k, v) in enumerate(self.options.items())
        )

    @property
    def mode(self) -> str | None:
        """The one protocol that the method works in; None where it works in both."""
        if "mode" not in REGISTRY[self.name.split("+")[0]].options:
            return None
        return str(self.options.get("mode", STREAMING))

    def build(self, context: MethodContext) -> AnyMethod:
        """The method for a model.

        Raises:
            InputError: a value out of range, or something the method needs is missing.
        """
        parts = self.name.split("+")
        if len(parts) == 1:
            return REGISTRY[self.name].build(context, **self.options)
        evictor, codec = (REGISTRY[part].build(context, **_options_of(part, self.options)) for part in parts)
        if not isinstance(evictor, Evictor) or isinstance(codec, Evictor) or hasattr(codec, "evict"):
            raise InputError(f"{self.name}: compose an evicting method with a codec, as h2o+spectral.")
        return Composed(evictor, codec)


def get(name: str, **options: Any) -> MethodSpec:
    """A method by name.

    Raises:
        InputError: an unknown name, option, or a value of the wrong type.
    """
    known = _options(name)
    for key, value in options.items():
        if key not in known:
            has = ", ".join(known) or "none"
            raise InputError(f"{name} has no option {key!r}; its options are {has}.{did_you_mean(key, tuple(known))}")
        options[key] = _typed(name, key, value, known[key])
    return MethodSpec(name, options)


def parse(text: str) -> list[MethodSpec]:
    """`turboquant:bits=3,variant=prod` as one spec; a bare name as one spec for each of its default budgets.

    Raises:
        InputError: see `get`.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        return [get(name, **budget) for budget in _budgets(name)]
    options = {}
    for item in rest.split(","):
        key, equals, value = item.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{text!r}: write options as {name}:option=value,option=value.")
        if key in options:
            raise InputError(
                f"{text!r} gives {key} twice. Several values are several methods: {name}:{key}=… {name}:{key}=…."
            )
        options[key] = value
    return [get(name, **options)]


def check(spec: MethodSpec) -> None:
    """Refuse values out of range before a model is loaded, where that needs no model.

    Raises:
        InputError: naming the constraint.
    """
    parts = spec.name.split("+")
    checked = []
    for part in parts:
        check_part = REGISTRY[part].check
        checked.append(None if check_part is None else check_part(**_options_of(part, spec.options)))
    if len(parts) == 2 and (not isinstance(checked[0], Evictor) or isinstance(checked[1], Evictor)):
        raise InputError(f"{spec.name}: compose an evicting method with a codec, as h2o+spectral.")


def _options_of(part: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a composed method that belong to one of its parts."""
    return {k: v for k, v in options.items() if k in REGISTRY[part].options}


def _options(name: str) -> dict[str, type]:
    out: dict[str, type] = {}
    for part in name.split("+"):
        if part not in REGISTRY:
            raise InputError(
                f"There is no method {part!r}; there are {', '.join(REGISTRY)}.{did_you_mean(part, tuple(REGISTRY))}"
            )
        out |= REGISTRY[part].options
    if len(name.split("+")) > 2:
        raise InputError(f"{name}: two methods can be composed, as h2o+spectral.")
    return out


def _budgets(name: str) -> tuple[Mapping[str, Any], ...]:
    _options(name)
    parts = name.split("+")
    return REGISTRY[parts[0]].budgets


def _typed(name: str, key: str, value: Any, kind: type) -> Any:
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise InputError(f"{name}: {key}={value} must be true or false.")
        return value.lower() == "true"
    try:
        typed = kind(value)
    except (TypeError, ValueError):
        typed = None
    if typed is None or (kind is int and float(value) != typed):
        wanted = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}[kind]
        raise InputError(f"{name}: {key}={value!r} must be {wanted}.")
    return typed


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
