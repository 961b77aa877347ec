"""Checks of the surroundings for `sq doctor`: each says what it found and, where needed, what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spectralquant.known_faults import TRANSFORMERS_FOR, dotted, faults_here, parse_version

OK, WARN, FAIL = "ok", "warn", "fail"
MIN_TORCH, MIN_TRANSFORMERS, MIN_TRITON = (2, 11), min(TRANSFORMERS_FOR.values()), (3, 6)
NEED_GB = 3.0


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: str
    found: str
    fix: str = ""


def run_checks() -> Iterator[Check]:
    """All checks, one after the other (they take some seconds: torch is imported, a kernel is run)."""
    for name, check in CHECKS.items():
        try:
            yield check()
        except Exception as error:  # a broken install raises anything; that is what this looks for
            yield Check(name, FAIL, f"{type(error).__name__}: {error}", "Reinstall what this names.")


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", OK, version)


def _package(name: str, least: tuple[int, ...]) -> Check:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, FAIL, "not installed", f"pip install '{name}>={dotted(least)}'")
    if parse_version(found) < least:
        return Check(name, FAIL, found, f"pip install --upgrade '{name}>={dotted(least)}'")
    return Check(name, OK, found)


def _known_faults() -> Check:
    """Versions that work in general and give wrong results for some models."""
    found = list(faults_here())
    if not found:
        sources = "; ".join(f"{source}: transformers {dotted(v)}" for source, v in TRANSFORMERS_FOR.items())
        return Check("known faults", OK, f"none in these versions (oldest that work: {sources})")
    said = "; ".join(f"{fault.package} {version}: {fault.what}" for fault, version in found)
    return Check("known faults", WARN, said, "; ".join(fault.fix for fault, _ in found))


def _triton() -> Check:
    if sys.platform != "linux":
        return Check("triton", WARN, "not available on this platform", "Kernels run on Linux only; all else works.")
    return _package("triton", MIN_TRITON)


def _gpu() -> Check:
    try:
        import torch
    except ImportError:
        return Check("GPU", WARN, "unknown without torch", "Install torch first.")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return Check(
            "GPU",
            OK,
            f"{torch.cuda.get_device_name(0)}, {count} device{'s' if count > 1 else ''}, CUDA {torch.version.cuda}",
        )
    if torch.version.cuda:
        return Check(
            "GPU",
            WARN,
            f"none seen by a CUDA {torch.version.cuda} build",
            "Check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES.",
        )
    return Check(
        "GPU",
        WARN,
        "none, and torch is a CPU build",
        "Fine for calibration of small models; for speed "
        "install a CUDA build of torch on a machine with an NVIDIA GPU.",
    )


def _nvml() -> Check:
    if importlib.util.find_spec("pynvml") is None:
        return Check(
            "NVML", WARN, "nvidia-ml-py is not installed", "pip install nvidia-ml-py (clocks, power, throttling)"
        )
    import pynvml

    try:
        pynvml.nvmlInit()
        return Check("NVML", OK, f"driver {pynvml.nvmlSystemGetDriverVersion()}")
    except pynvml.NVMLError as error:
        return Check("NVML", WARN, str(error), "Expected without an NVIDIA driver.")


def _shadowing() -> Check:
    """The published package `kernels` must not be hidden by our source folder of the same name."""
    ours = Path(__file__).resolve().parent.parent / "kernels"
    spec = importlib.util.find_spec("kernels")
    where = None if spec is None else spec.origin
    if where is not None and Path(where).resolve().is_relative_to(ours):
        return Check(
            "import kernels",
            FAIL,
            f"our folder {ours}",
            "Remove kernels/__init__.py: it hides a package that transformers uses.",
        )
    if importlib.util.find_spec("sqkernels") is None:
        return Check("import sqkernels", FAIL, "not found", "pip install -e . (or reinstall the wheel)")
    return Check(
        "import shadowing", OK, "sqkernels found, `kernels` " + ("free" if where is None else "is the published one")
    )


def _hub_cache() -> Check:
    folder = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    if not folder.exists():
        return Check("hub cache", OK, f"{folder}, not there yet{offline}")
    if not os.access(folder, os.W_OK):
        return Check("hub cache", WARN, f"{folder} is not writable", "Set HF_HOME to a folder you can write.")
    return Check("hub cache", OK, f"{folder}{offline}")


def _builtin_model() -> Check:
    from spectralquant.models.builtin.folder import cached_folder, is_cached
    from spectralquant.models.builtin.table import BUILTIN_MODELS, DEFAULT_MODEL

    there = [name for name, model in BUILTIN_MODELS.items() if is_cached(model)]
    if DEFAULT_MODEL in there:
        return Check(
            "built-in models", OK, f"{', '.join(there)} in {cached_folder(BUILTIN_MODELS[DEFAULT_MODEL]).parent}"
        )
    size = BUILTIN_MODELS[DEFAULT_MODEL].megabytes
    return Check("built-in models", WARN, "not fetched yet", f"The first calibration fetches one ({size} MB).")


def _disk() -> Check:
    from spectralquant.files import cache_folder

    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "not writable" if folder.is_dir() else "no folder"
        return Check("disk", FAIL, f"{folder} is {what}", "Set SPECTRALQUANT_CACHE to a folder that you can write.")
    free = shutil.disk_usage(folder).free / 1e9
    if free < NEED_GB:
        return Check(
            "disk", FAIL, f"{free:.1f} GB free in {folder}", f"Free {NEED_GB:.0f} GB, or set SPECTRALQUANT_CACHE."
        )
    return Check("disk", OK, f"{free:.0f} GB free in {folder}")


def _smoke() -> Check:
    """Compile and run a small kernel: on the GPU where there is one, else under Triton's interpreter."""
    if sys.platform != "linux" or importlib.util.find_spec("triton") is None:
        return Check("Triton smoke test", WARN, "skipped", "Needs Linux and triton.")
    done = subprocess.run(
        [sys.executable, "-m", "sqkernels.smoke"], capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode == 0:
        return Check("Triton smoke test", OK, done.stdout.strip())
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return Check(
        "Triton smoke test", FAIL, last, "Reinstall triton; on a GPU machine check that gcc and the driver work."
    )


def _cpu_coder() -> Check:
    from sqkernels.entropy import native
    from sqkernels.entropy.compiled import compiler_missing

    missing, passed_over = native.missing(), compiler_missing()
    if missing is None and passed_over is not None:
        return Check("CPU coder", WARN, f"compiled; {passed_over}", "Let CC name a C compiler, or unset it.")
    if missing is None:
        return Check("CPU coder", OK, "compiled")
    gain = "Packets are coded by numpy, to the same bytes; compiled it is about five times as fast."
    return Check("CPU coder", WARN, f"numpy ({missing})", f"{gain} {_compiler_fix(missing)}")


def _compiler_fix(missing: str) -> str:
    if "SPECTRALQUANT_COMPILE" in missing:
        return "Unset SPECTRALQUANT_COMPILE, or set it to 1."
    if "no C compiler" in missing:
        return "Install gcc or clang."
    if " failed: " in missing:
        return "Repair that compiler, or let CC name another."
    return "See that the folder compiled in the user's cache (SPECTRALQUANT_CACHE) can be written."


CHECKS: dict[str, Callable[[], Check]] = {
    "Python": _python,
    "torch": lambda: _package("torch", MIN_TORCH),
    "transformers": lambda: _package("transformers", MIN_TRANSFORMERS),
    "triton": _triton,
    "constriction": lambda: _package("constriction", (0, 4)),
    "known faults": _known_faults,
    "GPU": _gpu,
    "NVML": _nvml,
    "imports": _shadowing,
    "hub cache": _hub_cache,
    "built-in model": _builtin_model,
    "disk": _disk,
    "Triton smoke test": _smoke,
    "CPU coder": _cpu_coder,
}
