"""Values of options that are checked while the command line is read: a typo is answered at once, before anything loads.

None of these imports torch. What only a model or a file can tell is checked later, by the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import typer

Check = Callable[[Any], None]

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "all")


def checked(check: Check) -> Callable[[typer.Context, Any], Any]:
    """A Typer callback that runs `check` on a value, or on each of several."""

    def callback(context: typer.Context, value: Any) -> Any:
        if not context.resilient_parsing and value is not None:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                check(one)
        return value

    return callback


Names = Iterable[str] | Callable[[], Iterable[str]]


def one_of(option: str, names: Names, *, several: bool = False) -> dict[str, Any]:
    """For `typer.Option(**one_of(…))`: takes these names alone, or a list of them with commas, and a shell completes them."""

    def check(value: str) -> None:
        from spectralquant.errors import InputError, did_you_mean

        known = _known(names)
        for word in value.split(",") if several else [value]:
            if word.strip() not in known:
                said = did_you_mean(word.strip(), known)
                raise InputError(f"{option} {word.strip()!r} is not one of {', '.join(known)}.{said}")

    return {"callback": checked(check), **completed(names, several=several)}


def completed(names: Names, *, several: bool = False) -> dict[str, Any]:
    """For `typer.Option(**completed(…))`: what a shell completes a value with, or the last of several with commas."""

    def complete(incomplete: str) -> list[str]:
        before = incomplete[: incomplete.rfind(",") + 1] if several else ""
        return [before + name for name in _known(names) if (before + name).startswith(incomplete)]

    return {"autocompletion": complete}


def _known(names: Names) -> tuple[str, ...]:
    return tuple(names() if callable(names) else names)


def check_model(spec: str) -> None:
    """A built-in model's name, and a GGUF file that is there."""
    from pathlib import Path

    from spectralquant.errors import SourceError, did_you_mean
    from spectralquant.models.builtin.table import BUILTIN_MODELS, PREFIX

    if spec.startswith(PREFIX) and spec not in BUILTIN_MODELS:
        raise SourceError(
            f"There is no built-in model {spec!r}; there is {', '.join(BUILTIN_MODELS)}.{did_you_mean(spec, BUILTIN_MODELS)}"
        )
    if spec.lower().endswith(".gguf") and not Path(spec).is_file():
        raise SourceError(f"There is no GGUF file {spec}. Check the path.")


def check_data(spec: str) -> None:
    """A text's name and weight."""
    from spectralquant.errors import InputError
    from spectralquant.text.read import require_name

    require_name(spec)
    if spec.startswith("hub:") and not spec.removeprefix("hub:").partition("=")[0].partition(":")[0].strip():
        raise InputError(f"--data {spec} names no data set. Pass hub:NAME[:config][:split][:column].")


def check_device(name: str) -> None:
    """A device's name; whether it is here is found out later."""
    from spectralquant.errors import InputError

    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and number.isdecimal())):
        raise InputError(f"--device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, …, all")


def check_methods(text: str) -> None:
    """Names of methods in `METHOD:option=value+METHOD`; their options are checked with the methods."""
    from spectralquant.errors import InputError, did_you_mean
    from spectralquant.methods.names import method_names

    known = (*method_names(), "all")
    for name in text.partition(":")[0].split("+"):
        if name not in known:
            raise InputError(f"There is no method {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")


def check_target(text: str) -> None:
    """A target; whether its tier is calibrated is found out later."""
    from spectralquant.calibration.targets import parse_target

    parse_target(text.rpartition(":")[2])


def tier_names() -> Sequence[str]:
    """Tiers, and all."""
    from spectralquant.calibration.options import TIERS

    return (*TIERS, "all")


def metric_names() -> Sequence[str]:
    """Metrics of a calibration."""
    from spectralquant.calibration.options import METRICS

    return METRICS


def purpose_names() -> Sequence[str]:
    """What a profile is for."""
    from spectralquant.calibration.options import PURPOSES

    return PURPOSES


def device_models() -> Sequence[str]:
    """Devices that can be predicted."""
    from spectralquant.bench.device.devices import DEVICES

    return tuple(DEVICES)


def suite_names() -> Sequence[str]:
    """Suites of the gate."""
    from spectralquant.gate.suites import SUITES

    return SUITES


def check_shape(text: str) -> None:
    """A named or custom shape."""
    from spectralquant.models.shapes import parse_shape

    parse_shape(text)
