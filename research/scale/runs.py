"""Runs of `sq calibrate` in processes of their own, so that each one's peak memory is its own."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MOST_SECONDS = 400
Row = dict[str, Any]


def sq(arguments: Sequence[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """`python -m sqcli …`: seconds and how it ended."""
    start = time.perf_counter()
    done = _python(["-m", "sqcli", *arguments])
    return time.perf_counter() - start, done


def _python(arguments: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python process and its descendants, ended together where they take longer than any part should."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=MOST_SECONDS)
        except BaseException as error:  # an interrupted study leaves nothing running either
            out, err = _ended(process)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            err += f"ended after {MOST_SECONDS} s"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process said that was told to end; torchrun ends its own processes first."""
    for sign, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, None)):
        with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(process.pid, sign)
            return process.communicate(timeout=patience)
    return process.communicate()


def calibration(options: Sequence[str], stem: Path, gpus: int = 1) -> Row:
    """One calibration by one process: its plan (predicted), and its time, peaks and profile (measured)."""
    with ThreadPoolExecutor(1) as beside:  # the plan is made while the model is loaded
        waiting = beside.submit(planned, options)
        seconds, done = sq(["calibrate", *options, "--out", str(stem)])
        plan = waiting.result()
    row: Row = {"options": " ".join(options), "gpus": gpus, "ok": done.returncode == 0, "process_s": round(seconds, 1)}
    if not row["ok"]:
        return row | {"plan": plan, "error": " ".join(done.stderr.split())[-400:]}
    return row | _measured(stem, plan)


def streamed(model: str, steps: int, window: int, out: Path) -> Row:
    """One calibration on one card of a model that is larger (see `research.scale.streamed`)."""
    start = time.perf_counter()
    done = _python(["-m", "research.scale.streamed", str(out), model, str(steps), str(window)])
    row: Row = {"model": model, "gpus": 1, "window": window, "ok": done.returncode == 0}
    row["process_s"] = round(time.perf_counter() - start, 1)
    row |= json.loads(out.read_text()) if out.is_file() else {}
    if not row["ok"]:
        return row | {"error": " ".join(done.stderr.split())[-400:]}
    most, plan = row["peak_bytes"], row["plan"]
    return row | {"plan_error": most and plan["peak_bytes"] / most - 1}


def _measured(stem: Path, plan: Row) -> Row:
    """What the sidecar of a finished calibration says, beside its plan."""
    sidecar = json.loads(stem.with_name(stem.name + ".json").read_text())
    run, options_used = sidecar["run"], sidecar["calibration"]
    peaks = run["stages_peak_bytes"]
    most = max(peaks.values(), default=None)  # none on a CPU
    share = {stage: plan["stages"][stage] / peak - 1 for stage, peak in peaks.items() if stage in plan["stages"]}
    return {
        "measured": True,
        "device": run["device"],
        "seconds": round(sum(run["stages_s"].values()), 1),
        "stages_s": run["stages_s"],
        "capture_s": run["capture_s"],
        "peak_bytes": most,
        "stages_peak_bytes": peaks,
        "stages_peak_bytes_by_device": run.get("stages_peak_bytes_by_device", {}),
        "plan": plan,
        "plan_error": most and plan["peak_bytes"] / most - 1,
        "plan_error_by_stage": share,
        "profile_bytes": sidecar["tensor_bytes"],
        "profile_bytes_by_tier": _bytes_by_tier(stem),
        "steps": options_used["steps"],
        "span_width": options_used["span_width"],
        "solver": options_used["solver"],
        "reduced_bytes": run["reduced_bytes"],
        "reduce_s": run["reduce_s"],
        "git_commit": run["git_commit"],
        "git_dirty": run["git_dirty"],
    }


def _bytes_by_tier(stem: Path) -> dict[str, int]:
    """Bytes of a profile's tensors: of each tier, and of the head spectra."""
    with safe_open(stem.with_name(stem.name + ".safetensors"), framework="pt") as handle:
        sizes = [(name.split(".")[0], handle.get_slice(name)) for name in handle.keys()]  # noqa: SIM118 (not a dict)
    out: dict[str, int] = {}
    for tier, tensor in sizes:
        out[tier] = out.get(tier, 0) + math.prod(tensor.get_shape()) * BYTES[tensor.get_dtype()]
    return out


def planned(options: Sequence[str]) -> Row:
    """What `--dry-run` predicts for the same options."""
    _, done = sq(["calibrate", *options, "--dry-run", "--json", "-", "--quiet"])
    if done.returncode:
        return {"stages": {}, "error": " ".join(done.stderr.split())[-300:]}
    result = json.loads(done.stdout)
    return result["plan"] | {"stages": {row["stage"]: row["peak_bytes"] for row in result["rows"]}}


def seconds_per_step(row: Row) -> float:
    """Of the first pass without what is kept beside the steps (samples, checkpoints)."""
    beside = row["capture_s"]["samples"] + row["capture_s"]["checkpoints"]
    return (row["stages_s"]["capture"] - beside) / row["steps"]


def together(out: Path, gpus: int, model: str, steps: int, window: int) -> list[Row]:
    """The same steps by one process and by 2, 4, … `gpus` (see `research.scale.together`)."""
    arguments = [*LAUNCH, str(gpus), "-m", "research.scale.together", str(out), model, str(steps), str(window)]
    done = _python(arguments, CUBLAS_WORKSPACE_CONFIG=":4096:8")  # what deterministic products need
    if done.returncode and not out.is_file():
        return [{"gpus": gpus, "ok": False, "error": " ".join(done.stderr.split())[-600:]}]
    return json.loads(out.read_text())
