"""Runs of `sq calibrate` in processes of their own, so that each one's peak memory is its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
Row = dict[str, Any]


def sq(arguments: Sequence[str], *, gpus: int = 1) -> tuple[float, subprocess.CompletedProcess[str]]:
    """`python -m sqcli …`, under torchrun for several GPUs: seconds and how it ended."""
    launcher = [] if gpus == 1 else [*LAUNCH, str(gpus)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "sqcli", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return time.perf_counter() - start, done


def calibration(options: Sequence[str], stem: Path, *, gpus: int = 1) -> Row:
    """One calibration: its plan (predicted), and its time, peaks and profile (measured)."""
    plan = planned(options)
    seconds, done = sq(["calibrate", *options, "--out", str(stem)], gpus=gpus)
    row: Row = {"options": " ".join(options), "gpus": gpus, "ok": done.returncode == 0, "process_s": round(seconds, 1)}
    if not row["ok"]:
        return row | {"plan": plan, "error": " ".join(done.stderr.split())[-400:]}
    sidecar = json.loads(stem.with_name(stem.name + ".json").read_text())
    run, options_used = sidecar["run"], sidecar["calibration"]
    peaks = run["stages_peak_bytes"]
    share = {stage: plan["stages"][stage] / peak - 1 for stage, peak in peaks.items() if stage in plan["stages"]}
    return row | {
        "measured": True,
        "device": run["device"],
        "seconds": round(sum(run["stages_s"].values()), 1),
        "stages_s": run["stages_s"],
        "capture_s": run["capture_s"],
        "peak_bytes": max(peaks.values()),
        "stages_peak_bytes": peaks,
        "plan": plan,
        "plan_error": max(peaks.values()) and plan["peak_bytes"] / max(peaks.values()) - 1,
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


def difference(stem: Path, other: Path) -> Row:
    """How far two profiles of one model and text are apart: spectra relative to the largest, and ranks."""
    from spectralquant.profile.model import CalibrationProfile

    ours, theirs = (CalibrationProfile.load(path) for path in (stem, other))
    spectra, ranks = ours.heads.variance - theirs.heads.variance, ours.heads.rank - theirs.heads.rank
    cold = [getattr(p.tier("cold"), kind).variance for p in (ours, theirs) for kind in ("key", "value")]
    pairs = [(a[: min(len(a), len(b))], b[: min(len(a), len(b))]) for a, b in zip(cold[:2], cold[2:], strict=True)]
    return {
        "head_spectra": float((spectra.abs() / theirs.heads.variance.amax(-1, keepdim=True)).max()),
        "head_ranks": float(ranks.abs().max()),
        "cold_spectra": max(float((a - b).abs().max() / b.max()) for a, b in pairs),
        "cold_ranks": [len(a) - len(b) for a, b in zip(cold[:2], cold[2:], strict=True)],
    }
