"""`sq study serving-hot`: vLLM with the hot tier in its pages, beside its own pages, on a CPU or a GPU."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.serving.engines.cards import cards
from research.serving.engines.engine import ENGINE
from research.serving.engines.side_by_side import Variables, side_by_side
from research.serving.engines.turboquant import NOTE, lacks_flash_attention_2
from spectralquant.errors import InputError
from spectralquant.integrations.serve_check.child import numbers_file
from spectralquant.integrations.serve_check.compare import compare
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm, run
from spectralquant.integrations.vllm.hot.profile import pages_profile
from spectralquant.integrations.vllm.hot.variable import VARIABLE
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

Report = Callable[[str], None]
PLAIN, FP8, TURBO, HOT = "bf16 pages", "fp8 pages", "turboquant_4bit_nc pages", "hot pages"

NOT_STARTED = "not measured, its engine did not start"
Done = Callable[[str, dict[str, Any]], None]
SMALL_SHARE, SMALL_BYTES = 0.15, 4 << 30
TOGETHER = 4  # engines of the small model on one GPU, which are not timed


@dataclass(frozen=True)
class HotStudy:
    """prompts of one shared prefix of `prefix` tokens, `new` tokens each; on a CPU `batch` sequences decode together. Prompts are read
    `step` tokens at a time, so that most of a prefix is read from pages. batches: on a GPU, sequences of `long` tokens of the large
    shape that decode `long_new` tokens together, as many as fit in the engine's pages; each batch has the prompts of the one before.
    """

    prompts: int = 6
    prefix: int = 1000
    new: int = 10
    batch: int = 2
    batch_tokens: int = 32
    step: int = 256
    text: str = "builtin:pydoc"
    batches: tuple[int, ...] = (1, 8, 16, 32, 64)
    long: int = 32_768
    long_new: int = 168
    engine: dict[str, Any] = field(default_factory=dict)


def serving_hot_study(model: str, profile: Path, study: HotStudy, *, offline: bool, report: Report) -> Results:
    """Every way in an engine of its own: capacity, log-probabilities and, on a CPU, decode speed.

    Raises:
        ProfileError: the profile is missing, or has no codes for pages.
        InputError: vLLM is missing, CUDA_VISIBLE_DEVICES names GPUs that are not there, or an engine did not do what it was told.
    """
    pages_profile(str(profile))
    require_vllm()
    cards()
    arguments, gpu = engine_arguments(study.prefix + 512, eager=True)
    engine = {**arguments, "block_size": 128, "max_num_batched_tokens": study.step, "max_num_seqs": 8}
    engine |= (
        {"gpu_memory_utilization": SMALL_SHARE, "kv_cache_memory_bytes": SMALL_BYTES} if gpu else {}
    ) | study.engine
    folder = str(model_folder(model, offline=offline, report=report))
    steps = [Step("texts", "texts", Prompts("shared", study.prompts, study.prefix), study.new)]
    if not gpu:
        steps.append(Step("batch", "batch", Prompts("distinct", study.batch, study.prefix, part=2), study.batch_tokens))
    with tempfile.TemporaryDirectory(prefix="sq-serving-hot-") as made:
        orders = {name: Order(folder, engine | way, None, steps, study.text) for name, way in ways(gpu).items()}
        runs = run_ways(orders, profile, Path(made), report, together=TOGETHER if gpu else 1)
        rows = [_row(name, runs, study, Path(made)) for name in runs]
    by = {row.way: row for row in rows}
    summary = {
        "hot_capacity_over_bf16": by[HOT].pages / by[PLAIN].pages,
        "fp8_capacity_over_bf16": by[FP8].pages / by[PLAIN].pages,
        "hot_kl_nats": by[HOT].kl_nats,
        "fp8_kl_nats": by[FP8].kl_nats,
    }
    facts = runs[PLAIN]["facts"]
    known = {k: v for k, v in facts.items() if k not in ("start_s", "pages")}
    settings = asdict(study) | {"profile": profile.name, "space": _space(engine, gpu)}
    faults = [f"{name}: {NOT_STARTED}" for name in orders if name not in runs]
    return results_file(
        "serving", rows, provenance(**known), summary=summary, settings=settings, engine=facts, faults=faults
    )


def ways(gpu: bool) -> dict[str, dict[str, Any]]:
    """Arguments of the engine by the way it keeps keys and values."""
    out: dict[str, dict[str, Any]] = {PLAIN: {}, FP8: {"kv_cache_dtype": "fp8"}}
    if not gpu:
        return out | {HOT: {}}
    return out | {TURBO: {"kv_cache_dtype": "turboquant_4bit_nc"}, HOT: {"attention_backend": "CUSTOM"}}


def run_ways(
    orders: dict[str, Order],
    profile: Path,
    folder: Path,
    report: Report,
    *,
    together: int = 1,
    make_profile: Callable[[Variables], None] | None = None,
    done: Done | None = None,
) -> dict[str, dict[str, Any]]:
    """Reports by way; where there are several GPUs, every way has one of its own and they run together; `together` of them share one.

    One of vLLM's turboquant holds a `note` where it is not run as vLLM has it; where it does not start, it is left out, and that is said.
    Hot pages, which have most to refuse, begin; where an engine fails, those that have not begun are not started. make_profile: called
    before hot pages, beside the other ways. done: gets each report as soon as it is there.
    """

    def start(name: str, gpu: Variables) -> dict[str, Any] | None:
        if name == HOT and make_profile is not None:
            make_profile(gpu)
        result = _run(
            name, orders[name], folder, {VARIABLE: str(profile.absolute()) if name == HOT else "", **gpu}, report
        )
        if result is not None and done is not None:
            done(name, result)
        return result

    first = sorted(orders, key=lambda name: name != HOT)
    runs = side_by_side({name: partial(start, name) for name in first}, together)
    return {name: run for name in orders if (run := runs.get(name)) is not None}


def _run(name: str, order: Order, folder: Path, variables: Variables, report: Report) -> dict[str, Any] | None:
    report(f"{name}: starting vLLM")
    try:
        done = run(order, folder, name.replace(" ", "-"), child=ENGINE, variables=variables)
    except InputError as error:
        if name != TURBO:
            raise
        report(f"{name}: {NOT_STARTED}: {error}")
        return None
    return done | {"note": NOTE} if name == TURBO and lacks_flash_attention_2() else done


def _space(engine: dict[str, Any], gpu: bool) -> str:
    """How much memory pages have."""
    if (nbytes := engine.get("kv_cache_memory_bytes")) is not None:
        return f"{nbytes / 2**30:g} GiB"
    return (
        f"{engine['gpu_memory_utilization']:.0%} of the GPU" if gpu else f"{os.environ['VLLM_CPU_KVCACHE_SPACE']} GiB"
    )


def _row(name: str, runs: dict[str, Any], study: HotStudy, folder: Path) -> ServingRow:
    batch = runs[name]["steps"].get("batch")
    row = ServingRow(
        way=name,
        prompts=study.prompts,
        prefix_tokens=study.prefix,
        pages=runs[name]["facts"]["pages"],
        decode_tokens_per_s={str(study.batch): statistics.median(batch["tokens_per_s"])} if batch else {},
        engine_start_s=runs[name]["facts"]["start_s"],
        note=runs[name].get("note"),
    )
    if name == PLAIN:
        return row
    exact, other = (
        np.load(numbers_file(folder / f"{which.replace(' ', '-')}.report.json", "texts")) for which in (PLAIN, name)
    )
    texts = [runs[which]["steps"]["texts"]["tokens"] for which in (PLAIN, name)]
    return row.updated(**asdict(compare(exact, other, *texts)))
