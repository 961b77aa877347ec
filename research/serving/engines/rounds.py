"""Decode speed with and without tiers, by engines that take turns on one GPU: what changes in time changes it for all of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from research.serving.engines.engine import ENGINE
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.orders import Order
from spectralquant.integrations.serve_check.process import LAST_LINES, surroundings
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

Report = Callable[[str], None]
KINDS = ("storing", "stored")


class Turns:
    """An engine's process that imports at once, and starts and decodes when it is told to."""

    def __init__(self, name: str, order: Order, folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        order_file = folder / f"{name}.order.json"
        write_json(order_file, asdict(order))
        read, write = os.pipe()
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", ENGINE, str(order_file), "-", str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=surroundings(),
                pass_fds=(write,),
                text=True,
            )
        os.close(write)
        self._answers = os.fdopen(read)

    def tell(self, line: str) -> dict[str, Any]:
        """Its answer.

        Raises:
            InputError: it ended; the message shows its last lines.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise InputError(f"The engine of {self.name} ended. Its log {self.log} ends:\n{last}")
        return dict(json.loads(answer))

    def __enter__(self) -> Turns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._answers.close()


@dataclass(frozen=True)
class Rounds:
    """What an engine did. facts: of it. rounds: of each, by kind, tokens a second, the median of a step and seconds in the connector."""

    facts: dict[str, Any]
    rounds: list[dict[str, dict[str, float]]]

    def rates(self, kind: str) -> list[float]:
        """Tokens a second of each round."""
        return [one[kind]["tokens_per_s"] for one in self.rounds]

    def median(self, kind: str, figure: str) -> float:
        """Over the rounds."""
        return statistics.median(one[kind][figure] for one in self.rounds)


def take_turns(
    engines: Mapping[str, Turns], rounds: int, report: Report, keep: Callable[[dict[str, Rounds]], None]
) -> dict[str, Rounds]:
    """Start engines one after the other, then let them decode in turns, another one first in each round; `keep` gets what there is after
    every round.
    """
    facts = {}
    for name, engine in engines.items():
        report(f"{name}: starting vLLM")
        facts[name] = engine.tell("start")["facts"]
    names, done = list(engines), {name: Rounds(facts[name], []) for name in engines}
    for number in range(rounds + 1):
        for i in range(len(names)):
            name = names[(number + i) % len(names)]
            figures = engines[name].tell(str(number))["rounds"]
            if number:  # what runs for the first time is not counted
                done[name].rounds.append(figures)
        if number:
            report(f"round {number} of {rounds}: " + "; ".join(_said(name, done[name]) for name in names))
            keep(done)
    return done


def _said(name: str, done: Rounds) -> str:
    return f"{name} {done.rates('storing')[-1]:.0f}, {done.rates('stored')[-1]:.0f} tokens/s"


def decoding_results(
    done: Mapping[str, Rounds], base: str, own: str, ours: str, order: Order, settings: Mapping[str, Any]
) -> Results:
    """Rows by way; of each figure the median over rounds, and of ratios to `base` and `own` the median over rounds of the same number."""
    assert order.steps[0].prompts is not None
    batch = str(order.steps[0].prompts.count)
    rows = [
        ServingRow(
            way=way,
            prompts=int(batch),
            prefix_tokens=order.steps[0].prompts.tokens,
            decode_tokens_per_s={batch: statistics.median(one.rates("stored"))},
            decode_storing_tokens_per_s={batch: statistics.median(one.rates("storing"))},
            decode_samples_tokens_per_s={kind: one.rates(kind) for kind in KINDS},
            decode_step_s={kind: one.median(kind, "step_s") for kind in KINDS},
            decode_connector_s={kind: one.median(kind, "connector_s") for kind in KINDS},
            engine_start_s=one.facts["start_s"],
            pages=one.facts["pages"],
        )
        for way, one in done.items()
    ]
    summary: dict[str, float | None] = {}
    for kind, name in (("stored", "decode"), ("storing", "decode_storing")):
        over = {to: _ratios(done[ours].rates(kind), done[to].rates(kind)) for to in (base, own)}
        noise = _ratios(done[base].rates(kind), [statistics.median(done[base].rates(kind))] * len(over[base]))
        summary |= {
            f"{name}_over_recompute": statistics.median(over[base]),
            f"{name}_over_recompute_least": min(over[base]),
            f"{name}_over_recompute_most": max(over[base]),
            f"{name}_over_vllm_tiers": statistics.median(over[own]),
            f"{name}_noise": max(noise) - min(noise),
        }
    facts = done[base].facts
    known = {k: v for k, v in facts.items() if k not in ("start_s", "pages")}
    return results_file("serving", rows, provenance(**known), summary=summary, settings=dict(settings), engine=facts)


def _ratios(these: list[float], those: list[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=True)]
