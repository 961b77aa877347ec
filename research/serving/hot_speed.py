"""The large part of `sq study serving-hot`: how many tokens an engine's pages hold, and how fast it decodes behind long prompts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from research.serving.cards import cards
from research.serving.hot import FP8, HOT, PLAIN, HotStudy, Report, run_ways, ways
from spectralquant.errors import InputError
from spectralquant.integrations.serve_check.machine import engine_arguments
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

SHAPE = "llama-3.1-8b"
SHARE = 0.9
GROUP = "8"  # the batch that the summary compares


def serving_hot_speed(
    study: HotStudy, *, report: Report, only: tuple[str, ...] = (), keep: Path | None = None
) -> Results:
    """Every way (or `only` some, by their whole names) in an engine with an 8B shape, random weights, and graphs of decode steps.

    Raises:
        InputError: `only` names what is no way, there is no GPU or no vLLM, or an engine did not do what it was told.
    """
    if unknown := [name for name in only if name not in ways(gpu=True)]:
        raise InputError(f"No way is called {', '.join(unknown)}. They are {', '.join(ways(gpu=True))}.")
    require_vllm(1, "The large part of serving-hot")
    cards()
    arguments, gpu = engine_arguments(study.long + 2048, eager=False)
    with tempfile.TemporaryDirectory(prefix="sq-serving-hot-") as made:
        folder = keep or Path(made)
        model, profile = folder / "8b", folder / "8b-hot"
        if not profile.with_suffix(".safetensors").exists():
            report("making the configuration of an 8B shape, and a hot profile for its cache")
            _python("research.serving.hot_large", str(model), str(profile), SHAPE)
        engine = {
            **arguments,
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "block_size": 128,
            "gpu_memory_utilization": SHARE,
            "max_num_batched_tokens": 8192,
            "max_num_seqs": max(study.batches),
            "compilation_config": {
                "mode": 0,
                "cudagraph_mode": "FULL_DECODE_ONLY",
                "cudagraph_capture_sizes": list(study.batches),
            },
        }
        steps = [_step(batch, study) for batch in study.batches]
        orders = {
            name: Order(str(model), engine | way, None, steps, study.text)
            for name, way in ways(gpu).items()
            if not only or name in only
        }
        runs = run_ways(orders, profile, folder, report)
    rows = [_row(name, done, study) for name, done in runs.items()]
    facts = next(iter(runs.values()))["facts"]
    known = {k: v for k, v in facts.items() if k not in ("start_s", "pages")}
    settings = asdict(study) | {"shape": SHAPE, "share": SHARE}
    return results_file("serving", rows, provenance(**known), summary=_summary(rows), settings=settings, engine=facts)


def _step(batch: int, study: HotStudy) -> Step:
    tokens = Prompts("distinct", batch, study.long)
    return Step("batch", f"batch {batch}", tokens, study.long_new, if_fits=True)


def _row(name: str, done: dict[str, Any], study: HotStudy) -> ServingRow:
    rates = {str(b): done["steps"][f"batch {b}"].get("tokens_per_s") for b in study.batches}
    return ServingRow(
        way=f"8b/{name}",
        prefix_tokens=study.long,
        pages=done["facts"]["pages"],
        decode_tokens_per_s={b: statistics.median(r) for b, r in rates.items() if r},
        engine_start_s=done["facts"]["start_s"],
        note=done.get("note"),
    )


def _summary(rows: list[ServingRow]) -> dict[str, float]:
    by = {row.way.removeprefix("8b/"): row for row in rows}
    out = {}
    if {PLAIN, HOT} <= by.keys():
        out["hot_capacity_over_bf16"] = by[HOT].pages / by[PLAIN].pages
    if {FP8, HOT} <= by.keys():
        rates = [by[name].decode_tokens_per_s.get(GROUP) for name in (HOT, FP8)]
        if all(rates):
            out["hot_tokens_per_s_over_fp8_b8_32k"] = rates[0] / rates[1]
    return out


def _python(module: str, *words: str) -> None:
    """Another process, so that the GPU's memory is free again afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{module} failed: {done.stderr[-2000:]}")
