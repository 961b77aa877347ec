"""Every method by name, with typed options; nothing is built until a model is there.

`get("turboquant", bits=3)` gives a `MethodSpec`; `spec.build(context)` gives the method. `h2o+spectral` composes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from spectralquant.errors import InputError, did_you_mean
from spectralquant.methods.base import AnyMethod
from spectralquant.methods.composed import Composed
from spectralquant.methods.context import MethodContext
from spectralquant.methods.eviction.evictor import Evictor
from spectralquant.methods.eviction.h2o import H2O
from spectralquant.methods.eviction.heavy_hitter import HeavyHitter
from spectralquant.methods.eviction.scissorhands import Scissorhands
from spectralquant.methods.eviction.snapkv import SnapKV
from spectralquant.methods.eviction.streaming_llm import StreamingLLM
from spectralquant.methods.fp8 import Fp8
from spectralquant.methods.grouped import grouped
from spectralquant.methods.hf_quantized import HfQuantized
from spectralquant.methods.kivi import Kivi
from spectralquant.methods.kvtc import Kvtc
from spectralquant.methods.none import Uncompressed
from spectralquant.methods.spectral import spectral_from_profile
from spectralquant.methods.turboquant import TurboQuant

Build = Callable[..., AnyMethod]
SHARES = ({"keep": 0.5}, {"keep": 0.2}, {"keep": 0.1})


@dataclass(frozen=True)
class MethodEntry:
    """What the registry knows of a method: its options with their types, default budgets, source, how to build it."""

    summary: str
    source: str
    options: Mapping[str, type]
    budgets: tuple[Mapping[str, Any], ...]
    build: Build


def _plain(kind: Callable[..., AnyMethod]) -> Build:
    return lambda context, **options: kind(**options)


EVICTING = {"keep": float}
REGISTRY: dict[str, MethodEntry] = {
    "none": MethodEntry("uncompressed (float16)", "", {}, ({},), _plain(Uncompressed)),
    "spectral": MethodEntry(
        "loss-weighted transform over layers, calibrated bits, entropy coding",
        "this project",
        {"tier": str, "step_scale": float, "exact_bits": int, "adaptive": bool},
        ({"step_scale": 0.5}, {}, {"step_scale": 2.0}, {"tier": "warm"}, {"tier": "hot"}),
        spectral_from_profile,
    ),
    "turboquant": MethodEntry(
        "random rotation and Lloyd-Max codes",
        "arXiv 2504.19874",
        {"bits": float, "variant": str, "seed": int},
        ({"bits": 4.0}, {"bits": 3.0}, {"bits": 2.0}),
        lambda context, **options: TurboQuant(context.loaded.geometry.head_dim, **options),
    ),
    "kivi": MethodEntry(
        "keys by channel, values by token",
        "arXiv 2402.02750",
        {"bits": int, "group": int},
        ({"bits": 4}, {"bits": 3}, {"bits": 2}),
        _plain(Kivi),
    ),
    "h2o": MethodEntry("heavy hitters by accumulated attention", "arXiv 2306.14048", EVICTING, SHARES, _plain(H2O)),
    "heavy_hitter": MethodEntry(
        "tokens over an attention threshold",
        "a threshold rule",
        {"threshold": float},
        ({"threshold": 0.25}, {"threshold": 0.5}, {"threshold": 1.0}),
        _plain(HeavyHitter),
    ),
    "scissorhands": MethodEntry(
        "persistence of importance", "arXiv 2305.17118", EVICTING, SHARES, _plain(Scissorhands)
    ),
    "streaming_llm": MethodEntry("sinks and recent tokens", "arXiv 2309.17453", EVICTING, SHARES, _plain(StreamingLLM)),
    "snapkv": MethodEntry(
        "pooled attention of an observation window",
        "arXiv 2404.14469",
        {"keep": float, "kernel": int},
        SHARES,
        _plain(SnapKV),
    ),
    "kvtc": MethodEntry(
        "PCA over layers, dynamic-programming bits, DEFLATE",
        "arXiv 2511.01815",
        {"ratio": float},
        ({"ratio": 8.0}, {"ratio": 16.0}, {"ratio": 32.0}),
        lambda context, **options: grouped(
            context.loaded.geometry,
            lambda layers, g: Kvtc(context.pca(layers), (g.layers, g.kv_heads, g.head_dim), **options),
        ),
    ),
    "fp8": MethodEntry("8-bit floating point", "arXiv 2209.05433", {}, ({},), _plain(Fp8)),
    "hf_quantized": MethodEntry(
        "transformers' QuantizedCache",
        "transformers",
        {"backend": str, "bits": int, "group": int},
        ({"bits": 4}, {"bits": 2}),
        _plain(HfQuantized),
    ),
}
STANDALONE: dict[str, Callable[..., AnyMethod]] = {
    "h2o": H2O,
    "heavy_hitter": HeavyHitter,
    "scissorhands": Scissorhands,
    "streaming_llm": StreamingLLM,
    "snapkv": SnapKV,
    "kivi": Kivi,
    "hf_quantized": HfQuantized,
    "turboquant": lambda **options: TurboQuant(8, **options),
}


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

    def build(self, context: MethodContext) -> AnyMethod:
        """The method for a model.

        Raises:
            InputError: a value out of range, or something the method needs is missing.
        """
        parts = self.name.split("+")
        if len(parts) == 1:
            return REGISTRY[self.name].build(context, **self.options)
        built = []
        for part in parts:
            mine = {k: v for k, v in self.options.items() if k in REGISTRY[part].options}
            built.append(REGISTRY[part].build(context, **mine))
        evictor, codec = built
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
        options[key] = value
    return [get(name, **options)]


def check(spec: MethodSpec) -> None:
    """Refuse values out of range before a model is loaded, where that needs no model.

    Raises:
        InputError: naming the constraint.
    """
    parts = spec.name.split("+")
    built = []
    for part in parts:
        kind = STANDALONE.get(part)
        if kind is not None:
            built.append(kind(**{k: v for k, v in spec.options.items() if k in REGISTRY[part].options}))
    if len(parts) == 2 and not (isinstance(built[0] if parts[0] in STANDALONE else None, Evictor)):
        raise InputError(f"{spec.name}: compose an evicting method with a codec, as h2o+spectral.")


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
        made = kind(value)
    except (TypeError, ValueError):
        made = None
    if made is None or (kind is int and float(value) != made):
        wanted = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}[kind]
        raise InputError(f"{name}: {key}={value!r} must be {wanted}.")
    return made


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
