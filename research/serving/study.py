"""`sq study serving`: one command for `serving-cpu.json` (on a CPU) and `serving-h100.json` (on a GPU)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from research.serving.join import joined
from spectralquant.errors import InputError
from spectralquant.integrations.serve_check.check import ServeCheck, serve_check
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.results.schema import Results

LARGE = "random:llama-3.1-8b"
LARGE_RATIO = 20
GIB = 1 << 30
PARTS = ("small", "large")
Report = Callable[[str], None]


def serving_study(
    model: str, profile: Path, parts: Sequence[str] = (), *, offline: bool, report: Report, keep: Path | None = None
) -> Results:
    """Quality with `model` and its profile for serving (part `small`); on a GPU also times with an 8B shape (part `large`).

    Rows of the large shape are named `8b/…`. Its profile is fitted to its random weights at a payload ratio of 20, so that the
    coder has as much to do as at that ratio on a trained model; its qualities mean nothing and are not measured.

    Raises:
        InputError: vLLM is missing, there is no such part, or an engine did not do what it was told.
    """
    gpu = torch.cuda.is_available()
    wanted = tuple(parts) or (PARTS if gpu else PARTS[:1])
    if set(wanted) - set(PARTS) or ("large" in wanted and not gpu):
        raise InputError(f"Parts of `serving` are {' and '.join(PARTS)}; large needs a GPU.")
    with tempfile.TemporaryDirectory(prefix="sq-serving-") as made:
        folder = keep or Path(made)
        done = []
        if "small" in wanted:
            done.append(serve_check(_small(model, profile, gpu, offline, report), report, _inside(folder, "small")))
        if "large" in wanted:
            done.append(_large(folder, report))
        return done[0] if len(done) == 1 else joined(*done)


def _small(model: str, profile: Path, gpu: bool, offline: bool, report: Report) -> ServeCheck:
    engine, _ = engine_arguments(8192, eager=True)
    check = ServeCheck(
        model=str(model_folder(model, offline=offline, report=report)),
        codec=str(profile.absolute()),
        long=(8192,),
        long_prompts=2,
        engine=engine,
        name=model,
    )
    if gpu:
        check = replace(check, device="cuda", cpu_bytes=GIB // 4, trace=200, trace_prefixes=40)
        check = replace(check, engine={**engine, "gpu_memory_utilization": 0.3})
    return check


def _large(folder: Path, report: Report) -> Results:
    model, profile = folder / "8b", folder / "8b-profile"
    report("making an 8B shape with random weights, and its profile")
    _python("research.serving.large", str(model), str(profile), LARGE, str(LARGE_RATIO))
    engine, _ = engine_arguments(33_000, eager=True)
    check = ServeCheck(
        model=str(model),
        codec=str(profile),
        device="cuda",
        prompts=4,
        long=(8192, 32768),
        long_prompts=2,
        trace=0,
        batch=8,
        texts=False,
        own_tiers=True,
        cpu_bytes=6 * GIB,
        memory_bytes=14 * GIB,
        one_process=True,
        engine={**engine, "skip_tokenizer_init": True, "gpu_memory_utilization": 0.75},
    )
    return serve_check(check, report, _inside(folder, "large"))


def _inside(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    return folder / name


def _python(module: str, *words: str) -> None:
    """Another process, so that the GPU's memory is free again afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{module} failed: {done.stderr[-2000:]}")
