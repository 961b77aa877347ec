"""`sq study serving-hot`: vLLM's CPU engine with the hot tier in its pages, beside bfloat16 and fp8 pages."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spectralquant.errors import InputError
from spectralquant.integrations.serve_check.child import numbers_file
from spectralquant.integrations.serve_check.compare import compare
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm, run
from spectralquant.integrations.vllm.hot.select import VARIABLE
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

Report = Callable[[str], None]
PLAIN, FP8, HOT = "bf16 pages", "fp8 pages", "hot pages"


@dataclass(frozen=True)
class HotStudy:
    """prompts of one shared prefix of `prefix` tokens, `new` tokens each; `batch` sequences decode together. Prompts are read
    `step` tokens at a time, so that most of a prefix is read from pages.
    """

    prompts: int = 6
    prefix: int = 1000
    new: int = 10
    batch: int = 2
    batch_tokens: int = 16
    step: int = 256
    text: str = "builtin:pydoc"
    engine: dict[str, Any] = field(default_factory=dict)


def serving_hot_study(model: str, profile: Path, study: HotStudy, *, offline: bool, report: Report) -> Results:
    """The three ways, each in an engine of its own.

    Raises:
        InputError: vLLM is missing, it is not the CPU build, or an engine did not do what it was told.
    """
    require_vllm()
    arguments, gpu = engine_arguments(study.prefix + 512, eager=True)
    if gpu:
        raise InputError("The hot backend runs on the CPU build of vLLM alone, so this study does too.")
    engine = {**arguments, "block_size": 128, "max_num_batched_tokens": study.step, "max_num_seqs": 8, **study.engine}
    folder = str(model_folder(model, offline=offline, report=report))
    with tempfile.TemporaryDirectory(prefix="sq-serving-hot-") as made:
        runs = {
            PLAIN: _run(PLAIN, folder, engine, study, Path(made), report),
            FP8: _run(FP8, folder, engine | {"kv_cache_dtype": "fp8"}, study, Path(made), report),
            HOT: _run(HOT, folder, engine, study, Path(made), report, str(profile.absolute())),
        }
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
    settings = asdict(study) | {"profile": profile.name, "space": f"{os.environ['VLLM_CPU_KVCACHE_SPACE']} GiB"}
    return results_file("serving", rows, provenance(**known), summary=summary, settings=settings, engine=facts)


def _run(
    name: str, model: str, engine: dict[str, Any], study: HotStudy, folder: Path, report: Report, profile: str = ""
) -> dict[str, Any]:
    report(f"{name}: starting vLLM")
    steps = [
        Step("texts", "texts", Prompts("shared", study.prompts, study.prefix), study.new),
        Step("batch", "batch", Prompts("distinct", study.batch, study.prefix, part=2), study.batch_tokens),
    ]
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = profile
    try:
        return run(Order(model, engine, None, steps, study.text), folder, name.replace(" ", "-"))
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _row(name: str, runs: dict[str, Any], study: HotStudy, folder: Path) -> ServingRow:
    rates = runs[name]["steps"]["batch"]["tokens_per_s"]
    row = ServingRow(
        way=name,
        prompts=study.prompts,
        prefix_tokens=study.prefix,
        pages=runs[name]["facts"]["pages"],
        decode_tokens_per_s={str(study.batch): statistics.median(rates)},
        engine_start_s=runs[name]["facts"]["start_s"],
    )
    if name == PLAIN:
        return row
    exact, other = (
        np.load(numbers_file(folder / f"{which.replace(' ', '-')}.report.json", "texts")) for which in (PLAIN, name)
    )
    texts = [runs[which]["steps"]["texts"]["tokens"] for which in (PLAIN, name)]
    return row.updated(**asdict(compare(exact, other, *texts)))
