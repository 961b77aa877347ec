"""Versions of other packages with known faults, and the oldest transformers that really works for each source of models."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass

TRANSFORMERS_FOR = {
    "built-in model, folders and hub ids": (5, 17),
    "GGUF files": (5, 17),
    "GGUF files of Gemma models": (5, 18),
    "builtin:gemma3-270m": (5, 23),
}


@dataclass(frozen=True)
class KnownFault:
    """Versions of `package` from `first` on and before `mended` (None: not mended yet) have the fault `what`."""

    package: str
    first: tuple[int, ...]
    mended: tuple[int, ...] | None
    what: str

    def hits(self, version: tuple[int, ...]) -> bool:
        """Whether a version has it."""
        return self.first <= version and (self.mended is None or version < self.mended)

    @property
    def fix(self) -> str:
        """What to do about it."""
        if self.mended is None:
            return "No version without it is known; see the documentation for a way around it."
        return f"pip install --upgrade '{self.package}>={dotted(self.mended)}'"


FAULTS = (
    KnownFault(
        "transformers",
        (5, 0),
        (5, 18),
        "tokenizers of Gemma models in GGUF files are converted wrongly: an uncompressed perplexity in the thousands on English",
    ),
)


def faults_here() -> Iterator[tuple[KnownFault, str]]:
    """Known faults of the installed packages, each with the version that has it."""
    for fault in FAULTS:
        try:
            found = importlib.metadata.version(fault.package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if fault.hits(parse_version(found)):
            yield fault, found


def parse_version(text: str) -> tuple[int, ...]:
    """`5.17.0.dev0+cpu` as (5, 17, 0)."""
    numbers: list[int] = []
    for part in text.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def dotted(version: tuple[int, ...]) -> str:
    """(5, 18) as 5.18."""
    return ".".join(map(str, version))


def gguf_fault(model_type: str) -> str | None:
    """Why the installed transformers cannot be trusted with a GGUF file of this kind of model, or None."""
    least = TRANSFORMERS_FOR["GGUF files of Gemma models" if model_type.startswith("gemma") else "GGUF files"]
    found = importlib.metadata.version("transformers")
    if parse_version(found) >= least:
        return None
    return (
        f"transformers {found} reads GGUF files of {model_type} models wrongly (their tokenizer comes out broken). "
        f"pip install --upgrade 'transformers>={dotted(least)}', or use the model in safetensors form."
    )


def builtin_fault(spec: str) -> str | None:
    """Why the installed transformers cannot be trusted with the built-in model `builtin:NAME`, or None."""
    least = TRANSFORMERS_FOR.get(spec, TRANSFORMERS_FOR["GGUF files"])
    found = importlib.metadata.version("transformers")
    if parse_version(found) >= least:
        return None
    return (
        f"it needs transformers {dotted(least)} or newer for its tokenizer, and this is {found}. "
        f"pip install --upgrade 'transformers>={dotted(least)}'"
    )
