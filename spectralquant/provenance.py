"""Where a result came from: command, versions, commit (see `spectralquant.origin.checkout`), code, device; and may it be quoted."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from spectralquant.origin.checkout import used_source
from spectralquant.origin.quotable import marked
from spectralquant.origin.used_code import used_code

PACKAGES = ("spectralquant-toolkit", "torch", "transformers", "triton", "constriction", "numpy", "safetensors")


def provenance(**extra: Any) -> dict[str, Any]:
    """The `provenance` object of a results file; `extra` adds model and text hashes, seed and the like."""
    source = used_source()
    facts = {
        "command": _command(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "versions": {name: installed_version(name) for name in PACKAGES},
        "git_commit": source.commit,
        "git_dirty": source.dirty,
        "code": used_code(),
        **extra,
    }
    return marked(facts)


def device_facts(device: Any) -> dict[str, Any]:
    """Name of a torch device, with the driver for CUDA and the thread count for CPUs."""
    import torch

    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "driver": _driver(), "cuda": torch.version.cuda}
    return {"device": processor_name(), "threads": torch.get_num_threads()}


def peak_memory_bytes() -> int | None:
    """Largest resident set of this process so far (None where the platform does not tell)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _command() -> str | None:
    """The command line that runs: `sq …`, or `python -m MODULE …` of a study; None in a notebook or a script."""
    if _is_command():
        return shlex.join(["sq", *sys.argv[1:]])
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    if module is not None and module.name.startswith(("research.", "spectralquant.")):
        return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]])
    return None


def _is_command() -> bool:
    as_module = sys.argv[0].endswith(("sqcli/app.py", "sqcli/__main__.py"))
    return Path(sys.argv[0]).name in {"sq", "spectralquant"} or as_module


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # NVML is optional, and raises its own error family
        return None


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
