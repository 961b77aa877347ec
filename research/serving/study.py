"""`sq study serving`: one command for `serving-h100.json`, part by part; on a CPU its part `small` alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from research.serving.join import joined
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.check import UNFINISHED, Keep, ServeCheck, engines, serve_check
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.integrations.serve_check.process import require_vllm, usable_gpus
from spectralquant.integrations.serve_check.spares import Spares
from spectralquant.results.files import read_results
from spectralquant.results.schema import Results

LARGE = "random:llama-3.1-8b"
LARGE_RATIO = 20
TWO_RANKS = "random:custom:layers=6,heads=16,kv_heads=4,head_dim=128,hidden=2048,intermediate=5632,vocab=32000"
GIB = 1 << 30
NEEDS = {"small": 0, "large": 1, "tp": 2}
"""GPUs by part."""
PARTS = tuple(NEEDS)
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]}
Report = Callable[[str], None]


def serving_study(
    model: str,
    profile: Path | None,
    parts: Sequence[str] = (),
    *,
    offline: bool,
    report: Report,
    out: Path | None = None,
) -> Results:
    """Quality with `model` and its profile for serving (part `small`); on a GPU also times with an 8B shape (part `large`), and
    with two GPUs the same texts from two ranks (part `tp`).

    Each part is written to OUT-part-NAME.json, and all of them to OUT, whenever a way to serve has been measured: what a run that
    is cut off has measured is there, with what it has not among its faults. Parts that are there whole are taken, unless they are
    asked for. Rows of the large
    shape are named `8b/…`. Its profile is fitted to its random weights at a payload ratio of 20, so that the
    coder has as much to do as at that ratio on a trained model; its qualities mean nothing and are not measured.

    Raises:
        InputError: vLLM or a GPU that a part needs is missing, or an engine did not do what it was told.
    """
    for name in parts or ("small",):
        require_vllm(NEEDS[name], f"Part {name} of serving")
    gpus = usable_gpus()
    possible = [name for name in PARTS if NEEDS[name] <= gpus]
    files = {} if out is None else {name: out.with_name(f"{out.stem}-part-{name}.json") for name in PARTS}
    done: dict[str, Results] = {}

    def all_parts() -> Results:
        """With those of runs beside this one."""
        beside = {name: read_results(file) for name, file in files.items() if name not in done and file.exists()}
        both = beside | done
        return joined({name: both[name] for name in PARTS if name in both})

    def keep(name: str, result: Results) -> None:
        done[name] = result
        if out is not None:
            write_json(files[name], result.as_json())
            write_json(out, all_parts().as_json())

    for name in tuple(parts) or tuple(name for name in possible if not _whole(files.get(name))):
        with tempfile.TemporaryDirectory(prefix="sq-serving-") as made:
            folder, kept = Path(made), partial(keep, name)
            if name == "small":
                check = _small(model, profile, gpus > 0, offline, report)
                kept(serve_check(check, report, folder, keep=kept))
            else:
                kept((_large if name == "large" else _two_ranks)(folder, report, kept))
    return all_parts()


def _whole(file: Path | None) -> bool:
    """Whether a part is there, and was not cut off."""
    return file is not None and file.exists() and UNFINISHED not in read_results(file).settings


def _small(model: str, profile: Path | None, gpu: bool, offline: bool, report: Report) -> ServeCheck:
    if profile is None:
        raise InputError("Part small of serving needs --profile, one for serving: sq calibrate --for serving.")
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
        check = replace(
            check, device="cuda", cpu_bytes=GIB // 4, trace=200, trace_prefixes=40, trace_cpu_bytes=GIB // 16
        )
        check = replace(check, engine={**engine, "gpu_memory_utilization": 0.3})
    return check


def _large(folder: Path, report: Report, keep: Keep) -> Results:
    model, profile = folder / "8b", folder / "8b-profile"
    engine, _ = engine_arguments(33_000, eager=False)
    engine |= {"compilation_config": GRAPHS, "skip_tokenizer_init": True, "gpu_memory_utilization": 0.75}
    check = ServeCheck(
        model=str(model),
        codec=str(profile),
        name=LARGE,
        device="cuda",
        prompts=4,
        long=(8192, 32768),
        long_prompts=2,
        rounds=3,
        trace=0,
        batch=8,
        texts=False,
        own_tiers=True,
        lossless=False,
        cpu_bytes=6 * GIB,
        memory_bytes=14 * GIB,
        one_process=True,
        engine=engine,
    )
    with Spares(folder, engines(check), ["LlamaForCausalLM"]) as spares:
        report("making an 8B shape with random weights, and its profile")
        _python("research.serving.large", str(model), str(profile), LARGE, str(LARGE_RATIO))
        try:
            return serve_check(check, report, folder, keep=keep, spares=spares)
        except InputError as error:
            report(f"decoding without graphs, as the engine did not start with them: {error}")
            plain = {name: x for name, x in engine.items() if name != "compilation_config"} | {"enforce_eager": True}
            return serve_check(replace(check, engine=plain), report, folder, keep=keep, spares=spares)


def _two_ranks(folder: Path, report: Report, keep: Keep) -> Results:
    """Every bit kept, by two ranks of a small random model: texts must be those of computing again."""
    model = folder / "two-ranks"
    _python("research.serving.large", str(model), "", TWO_RANKS)
    engine, _ = engine_arguments(4096, eager=True)
    engine |= {"tensor_parallel_size": 2, "disable_custom_all_reduce": True, "gpu_memory_utilization": 0.6}
    check = ServeCheck(
        model=str(model),
        name=TWO_RANKS,
        prompts=4,
        prefix=2000,
        trace=0,
        new=4,
        cpu_bytes=GIB,
        engine={**engine, "skip_tokenizer_init": True},
    )
    return serve_check(check, report, folder, keep=keep)


def _python(module: str, *words: str) -> None:
    """Another process, so that the GPU's memory is free again afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{module} failed: {done.stderr[-2000:]}")
