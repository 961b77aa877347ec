"""`sq study serving`: one command for `serving-h100.json`, part by part; on a CPU its part `small` alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from research.serving.engines.rounds import Rounds, Turns, decoding_results, take_turns
from research.serving.floor import Floor, floor_study
from research.serving.join import joined
from research.serving.shape import save_shape
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.check import UNFINISHED, Keep, ServeCheck, engines, serve_check
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm, usable_gpus
from spectralquant.integrations.serve_check.spares import Spares
from spectralquant.integrations.serve_check.ways import RECOMPUTE, SPECTRAL, ours, vllm_own
from spectralquant.results.files import read_results
from spectralquant.results.schema import Results

LARGE = "random:llama-3.1-8b"
LARGE_RATIO = 20
SHAPE = LARGE.removeprefix("random:")
VLLM_OWN = "vllm-tiers"
GIB = 1 << 30
NEEDS = {"small": 0, "large": 1, "tp": 2, "floor": 0, "decode": 1}
"""GPUs by part."""
PARTS = tuple(NEEDS)
DECODED, DECODE_PROMPT, DECODE_ROUNDS = 256, 1024, 6
DECODE_BATCH = 8
DECODE_BYTES = 6 * GIB  # of pages: 48 thousand tokens of the 8B shape
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
    """Quality with `model` and its profile for serving (part `small`), and how far texts are from recomputing where every bit is kept,
    by our tier and by vLLM's own ways (part `floor`); on a GPU also times with an 8B shape (part `large`), speed of decoding with and without tiers
    (part `decode`), and with two GPUs the 8B shape by two ranks (part `tp`).

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
            elif name == "floor":
                kept(_floor(model, folder, gpus > 0, offline, report))
            else:
                kept({"large": _large, "tp": _two_ranks, "decode": _decode}[name](folder, report, kept))
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


def _floor(model: str, folder: Path, gpu: bool, offline: bool, report: Report) -> Results:
    engine, _ = engine_arguments(2048, eager=True)
    path = str(model_folder(model, offline=offline, report=report))
    floor = Floor(path, model, engine=engine | {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 2 * GIB})
    if not gpu:
        floor = replace(floor, engine=engine, own_tiers=False, cpu_bytes=0)
    return floor_study(floor, folder, report)


def _decode(folder: Path, report: Report, keep: Keep) -> Results:
    """Three engines on one GPU take turns; after every round there is a result."""
    model, profile = folder / "8b", folder / "8b-profile"
    engine, _ = engine_arguments(2048, eager=False)
    engine |= {"load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": DECODE_BATCH}
    engine |= {"compilation_config": GRAPHS, "gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": DECODE_BYTES}
    steps = [Step("batch", "batch", Prompts("distinct", DECODE_BATCH, DECODE_PROMPT), DECODED)]
    transfers = {
        RECOMPUTE: None,
        VLLM_OWN: vllm_own(folder / "files", 4 * GIB),
        SPECTRAL: ours(folder / "store", 1 << 38, str(profile), "cuda", 4 * GIB),
    }
    save_shape(model, SHAPE)
    orders = {name: Order(str(model), engine, transfer, steps) for name, transfer in transfers.items()}
    settings = {
        **{"model": f"{LARGE}, dummy weights", "batch": DECODE_BATCH, "prompt": DECODE_PROMPT, "new": DECODED},
        **{"rounds": DECODE_ROUNDS, "engine": engine, "codec": profile.name, "ratio": LARGE_RATIO},
    }

    def results(done: dict[str, Rounds], finished: bool = True) -> Results:
        to_come = {} if finished else {UNFINISHED: ["later rounds"]}
        return decoding_results(done, RECOMPUTE, VLLM_OWN, SPECTRAL, orders[RECOMPUTE], settings | to_come)

    with ExitStack() as stack:
        engines = {name: stack.enter_context(Turns(name, order, folder)) for name, order in orders.items()}
        report("making a profile for serving an 8B shape")
        _python("research.serving.large", "", str(profile), LARGE, str(LARGE_RATIO))
        return results(take_turns(engines, DECODE_ROUNDS, report, lambda done: keep(results(done, finished=False))))


def _two_ranks(folder: Path, report: Report, keep: Keep) -> Results:
    """An 8B shape by two ranks, every bit kept: texts must be those of computing again, and a prefix of 8,192 tokens comes sooner."""
    model = folder / "8b"
    engine, _ = engine_arguments(8448, eager=True)
    engine |= {"tensor_parallel_size": 2, "disable_custom_all_reduce": True, "gpu_memory_utilization": 0.6}
    check = ServeCheck(
        model=str(model),
        name=LARGE,
        device="cuda",
        prompts=4,
        prefix=2000,
        long=(8192,),
        long_prompts=2,
        rounds=2,
        trace=0,
        new=4,
        cpu_bytes=4 * GIB,
        one_process=True,
        engine={**engine, "skip_tokenizer_init": True},
    )
    with Spares(folder, engines(check), ["LlamaForCausalLM"]) as spares:
        report("making an 8B shape with random weights")
        _python("research.serving.large", str(model), "", LARGE)
        return serve_check(check, report, folder, keep=keep, spares=spares)


def _python(module: str, *words: str) -> None:
    """Another process, so that the GPU's memory is free again afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{module} failed: {done.stderr[-2000:]}")
