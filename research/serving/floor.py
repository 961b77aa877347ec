"""Part `floor` of `sq study serving`: how far texts are from recomputing where nothing is compressed, by any way to restore a prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.serving.engines.engine import ENGINE, texts_after
from research.serving.engines.side_by_side import Variables, side_by_side
from spectralquant.integrations.chunks import LOSSLESS
from spectralquant.integrations.serve_check.check import own_tokens
from spectralquant.integrations.serve_check.child import numbers_file
from spectralquant.integrations.serve_check.compare import Difference, compare
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import run
from spectralquant.integrations.serve_check.ways import FILES, MEMORY, RECOMPUTE, ours, vllm_own
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

AGAIN, CACHED = "recompute-again", "engine-cache"
TOGETHER = 4  # engines on one GPU: nothing is timed
ROOMY = 1 << 38


@dataclass(frozen=True)
class Floor:
    """The prompts of `ServeCheck`, served by vLLM alone twice, from its own prefix cache, from its tiers, and from ours with every bit
    kept. engine: arguments of `vllm.LLM`. own_tiers: vLLM's, which need a GPU.
    """

    model: str
    name: str
    prompts: int = 20
    prefix: int = 1000
    own: int = 24
    new: int = 8
    cpu_bytes: int = 1 << 28
    own_tiers: bool = True
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Texts:
    """Where a way's texts are: of which engine, and which of its steps."""

    engine: str
    step: str


def floor_study(floor: Floor, folder: Path, report: Callable[[str], None]) -> Results:
    """All ways, in engines that run together.

    Raises:
        InputError: an engine did not do what it was told.
    """
    shared = Prompts("shared", floor.prompts, floor.prefix, own_tokens(floor.prefix, floor.own))
    fill = [Step("fill", "fill", shared), Step("settle", "settle")]
    alone, again, cached, memory, files = (
        texts_after(before, name, shared, floor.new)
        for name, before in (
            ("alone", "forget"),
            ("again", "forget"),
            ("cached", "read"),
            ("from memory", "forget"),
            ("from files", "forget-memory"),
        )
    )
    plans: dict[str, tuple[dict[str, Any] | None, list[Step]]] = {
        RECOMPUTE: (None, [alone]),
        AGAIN: (None, [again, cached]),
        LOSSLESS: (ours(folder / "store", ROOMY, LOSSLESS, "cpu", floor.cpu_bytes), [*fill, files]),
    }
    ways = {
        AGAIN: Texts(AGAIN, again.name),
        CACHED: Texts(AGAIN, cached.name),
        LOSSLESS: Texts(LOSSLESS, files.name),
    }
    if floor.own_tiers:
        plans["vllm-own"] = (vllm_own(folder / FILES, floor.cpu_bytes), [*fill, memory, files])
        ways |= {MEMORY: Texts("vllm-own", memory.name), FILES: Texts("vllm-own", files.name)}
    if not floor.cpu_bytes:  # the CPU build has nothing in front of the store: a new process restores
        plans[LOSSLESS] = (ours(folder / "store", ROOMY, LOSSLESS, "cpu"), [*fill, memory])
        ways[LOSSLESS] = Texts(LOSSLESS, memory.name)

    def serve(name: str, gpu: Variables) -> dict[str, Any]:
        report(f"{name}: starting vLLM")
        transfer, steps = plans[name]
        order = Order(floor.model, floor.engine, transfer, steps)
        done = run(order, folder, name, child=ENGINE, variables=gpu)
        report(f"{name}: done")
        return done

    done = side_by_side({name: partial(serve, name) for name in plans}, TOGETHER if floor.own_tiers else 1)
    return _results(floor, folder, done, Texts(RECOMPUTE, alone.name), ways)


def _results(
    floor: Floor, folder: Path, done: dict[str, dict[str, Any]], base: Texts, ways: dict[str, Texts]
) -> Results:
    def against(exact: Texts, other: Texts) -> Difference:
        numbers = (
            np.load(numbers_file(folder / f"{x.engine}.report.json", x.step), mmap_mode="r") for x in (exact, other)
        )
        return compare(*numbers, *(done[x.engine]["steps"][x.step]["tokens"] for x in (exact, other)))

    rows = [ServingRow(way=RECOMPUTE, prompts=floor.prompts, prefix_tokens=floor.prefix)]
    for way, texts in ways.items():
        step = done[texts.engine]["steps"][texts.step]
        share = sum(step["cached_tokens"]) / sum(step["prompt_tokens"])
        row = ServingRow(way=way, prompts=floor.prompts, prefix_tokens=floor.prefix, cached_tokens_share=share)
        rows.append(row.updated(**asdict(against(base, texts))))
    ours_and_cache = against(ways[CACHED], ways[LOSSLESS])
    summary: dict[str, float | None] = {
        "lossless_kl_from_engine_cache_nats": ours_and_cache.kl_nats,
        "lossless_same_text_as_engine_cache": ours_and_cache.same_text,
    }
    by = {row.way: row for row in rows}
    for way in ways:
        name = way.replace("-", "_")
        summary |= {f"floor_{name}_kl_nats": by[way].kl_nats, f"floor_{name}_same_text": by[way].same_text}
    facts = done[RECOMPUTE]["facts"]
    known = {k: v for k, v in facts.items() if k not in ("start_s", "pages")}
    settings = asdict(floor) | {"model": floor.name}
    faults = [
        f"{row.way}: {1 - row.cached_tokens_share:.0%} of the tokens were computed"
        for row in rows
        if row.cached_tokens_share is not None and row.way != AGAIN and row.cached_tokens_share < 0.9
    ]
    return results_file(
        "serving", rows, provenance(**known), summary=summary, settings=settings, engine=facts, faults=faults
    )
