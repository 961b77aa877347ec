"""The large part of `sq study serving-hot`: how many tokens an engine's pages hold, and how fast it decodes behind long prompts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from research.serving.engines.cards import cards
from research.serving.engines.side_by_side import Variables
from research.serving.hot import FP8, HOT, NOT_STARTED, PLAIN, HotStudy, Report, run_ways, ways
from research.serving.shape import save_shape
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.check import UNFINISHED
from spectralquant.integrations.serve_check.machine import engine_arguments
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm
from spectralquant.provenance import provenance
from spectralquant.results.files import read_results, results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

SHAPE = "llama-3.1-8b"
SHARE = 0.9
GROUP = "8"  # the batch that the summary compares
LARGE = "8b/"
CUT_OFF = "cut off before it was measured"


def serving_hot_speed(
    study: HotStudy, *, report: Report, only: tuple[str, ...] = (), keep: Path | None = None, out: Path | None = None
) -> Results:
    """Every way (or `only` some, by their whole names) in an engine with an 8B shape, random weights, and graphs of decode steps.

    out: gets the rows that there are whenever a way ends. Where it holds some of an earlier run of the same commit that was cut off,
    these are taken and the other ways are measured. keep: a folder for logs and the profile that stays.

    Raises:
        InputError: `only` names what is no way, there is no GPU or no vLLM, or an engine did not do what it was told.
    """
    if unknown := [name for name in only if name not in ways(gpu=True)]:
        raise InputError(f"No way is called {', '.join(unknown)}. They are {', '.join(ways(gpu=True))}.")
    require_vllm(1, "The large part of serving-hot")
    cards()
    wanted = [name for name in ways(gpu=True) if not only or name in only]
    table = Rows(study, wanted, out, report)
    with tempfile.TemporaryDirectory(prefix="sq-serving-hot-") as made:
        folder = keep or Path(made)
        model, profile = folder / "8b", folder / "8b-hot"
        save_shape(model, SHAPE)

        def make_profile(gpu: Variables) -> None:
            if not profile.with_suffix(".safetensors").exists():
                report("hot pages: making a profile for the cache of an 8B shape")
                _python("research.serving.hot_large", str(profile), SHAPE, variables=gpu)

        engine, steps = _engine(study), [_step(batch, study) for batch in study.batches]
        orders = {
            name: Order(str(model), engine | way, None, steps, study.text)
            for name, way in ways(gpu=True).items()
            if name in table.missing
        }
        run_ways(orders, profile, folder, report, make_profile=make_profile, done=table.add)
    return table.results(finished=True)


class Rows:
    """Those of the ways that have been measured, written as they come."""

    def __init__(self, study: HotStudy, wanted: list[str], out: Path | None, report: Report) -> None:
        self._study, self._wanted, self._out, self._report = study, wanted, out, report
        self._facts: dict[str, Any] = {}
        self._rows: dict[str, ServingRow] = {}
        self._lock, self._begin = threading.Lock(), time.monotonic()
        self._take_earlier()

    @property
    def missing(self) -> list[str]:
        """Ways that are still to be measured."""
        return [name for name in self._wanted if name not in self._rows]

    def add(self, name: str, done: dict[str, Any]) -> None:
        """A way has ended."""
        with self._lock:
            if self._facts and self._facts["device"] != done["facts"]["device"]:
                self._report(f"rows of {self._facts['device']} are dropped")
                self._rows, self._facts = {}, {}
            self._rows[name] = _row(name, done, self._study)
            self._facts = self._facts or done["facts"]
            rates = ", ".join(f"batch {b}: {r:.0f}" for b, r in self._rows[name].decode_tokens_per_s.items())
            seconds = time.monotonic() - self._begin
            self._report(f"{name}: done after {seconds:.0f} s, {self._rows[name].pages:,} pages; tokens/s {rates}")
            if self._out is not None:
                write_json(self._out, self.results().as_json())

    def results(self, finished: bool = False) -> Results:
        """Rows in the order of the ways; ways that are not there are faults."""
        rows = [self._rows[name] for name in self._wanted if name in self._rows]
        to_come = [] if finished else self.missing
        known = {k: v for k, v in self._facts.items() if k not in ("start_s", "pages")}
        return results_file(
            "serving",
            rows,
            provenance(**known),
            summary=_summary(rows),
            settings=self._settings() | ({UNFINISHED: to_come} if to_come else {}),
            engine=self._facts,
            faults=[f"{LARGE}{name}: {NOT_STARTED if finished else CUT_OFF}" for name in self.missing],
        )

    def _settings(self) -> dict[str, Any]:
        return asdict(self._study) | {"shape": SHAPE, "share": SHARE}

    def _take_earlier(self) -> None:
        if self._out is None or not self._out.exists():
            return
        earlier = read_results(self._out)
        to_come = earlier.settings.get(UNFINISHED)
        if not to_come:
            return
        now = provenance()
        same = all(now.get(name) == earlier.provenance.get(name) for name in ("git_commit", "git_dirty"))
        settings = {name: x for name, x in earlier.settings.items() if name != UNFINISHED}
        if not same or settings != _plain(self._settings()):
            self._report(f"{self._out} is of another commit or study: every way is measured")
            return
        self._rows = {row.way.removeprefix(LARGE): row for row in earlier.rows}
        self._facts = dict(earlier.engine)
        self._report(f"taken from {self._out}: {', '.join(self._rows)}; still to come: {', '.join(self.missing)}")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """As JSON has them."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in settings.items()}


def _engine(study: HotStudy) -> dict[str, Any]:
    arguments, _ = engine_arguments(study.long + 2048, eager=False)
    return {
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


def _step(batch: int, study: HotStudy) -> Step:
    tokens = Prompts("distinct", batch, study.long)
    return Step("batch", f"batch {batch}", tokens, study.long_new, if_fits=True)


def _row(name: str, done: dict[str, Any], study: HotStudy) -> ServingRow:
    rates = {str(b): r for b in study.batches if (r := done["steps"][f"batch {b}"].get("tokens_per_s"))}
    return ServingRow(
        way=f"{LARGE}{name}",
        prefix_tokens=study.long,
        pages=done["facts"]["pages"],
        decode_tokens_per_s={b: statistics.median(r) for b, r in rates.items()},
        decode_samples_tokens_per_s=rates,
        decode_step_s={b: done["steps"][f"batch {b}"]["step_s"] for b in rates},
        engine_start_s=done["facts"]["start_s"],
        note=done.get("note"),
    )


def _summary(rows: list[ServingRow]) -> dict[str, float]:
    by = {row.way.removeprefix(LARGE): row for row in rows}
    out = {}
    if {PLAIN, HOT} <= by.keys():
        out["hot_capacity_over_bf16"] = by[HOT].pages / by[PLAIN].pages
    if {FP8, HOT} <= by.keys():
        rates = [by[name].decode_tokens_per_s.get(GROUP) for name in (HOT, FP8)]
        if all(rates):
            out["hot_tokens_per_s_over_fp8_b8_32k"] = rates[0] / rates[1]
    return out


def _python(module: str, *words: str, variables: Variables) -> None:
    """Another process, so that the GPU's memory is free again afterwards."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], env=os.environ | variables, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise InputError(f"{module} failed: {done.stderr[-2000:]}")
