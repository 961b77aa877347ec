"""The process with the engine: `python -m spectralquant.integrations.serve_check.child ORDER.json REPORT.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from spectralquant.files import read_json, write_json
from spectralquant.integrations.serve_check.orders import Order, Prompts, Report, Step, order_of
from spectralquant.integrations.serve_check.process import WAIT

SETTLE_SECONDS = 600.0
STILL_SECONDS = 0.5
STILL_SECONDS_GPU = 0.1  # vLLM knows of everything that is on its way there
LAST_PART = 0.8
RESET_TRIES = 50
BATCHES = 5


class Engine:
    """vLLM in this very process, and the tier's archives in it."""

    def __init__(self, order: Order) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("PYTHONHASHSEED", "0")
        from vllm import LLM, SamplingParams
        from vllm.config import KVTransferConfig

        from spectralquant.integrations.vllm.plugin import register

        register()  # an installed package has done so; a checkout has no entry points
        transfer = {} if order.transfer is None else {"kv_transfer_config": KVTransferConfig(**order.transfer)}
        self.sampling = SamplingParams
        self.llm = LLM(model=order.model, max_logprobs=-1, **order.engine, **transfer)
        self.stream = self._tokens(order)

    def _tokens(self, order: Order) -> list[int]:
        if order.engine.get("skip_tokenizer_init"):
            draw = random.Random(0)
            size = self.llm.llm_engine.model_config.get_vocab_size()
            return [draw.randrange(size) for _ in range(400_000)]
        from spectralquant.text.read import load_text

        tokenizer = self.llm.get_tokenizer()
        tokens = [i for text in load_text(order.text) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        first = int(LAST_PART * len(tokens))  # what a profile was calibrated on stands at the beginning
        return tokens[first:] + tokens[:first]

    def prompts(self, wanted: Prompts) -> list[list[int]]:
        """Token ids of each prompt."""
        if wanted.kind == "distinct":
            first = wanted.part * wanted.tokens
            return [self._cut(first + i * wanted.tokens, wanted.tokens) for i in range(wanted.count)]
        if wanted.kind == "shared":
            prefix = self._cut(0, wanted.tokens)
            return [prefix + self._cut(wanted.tokens + i * wanted.own, wanted.own) for i in range(wanted.count)]
        draw = random.Random(wanted.seed)
        weights = [1 / (rank + 1) for rank in range(wanted.prefixes)]
        chosen = draw.choices(range(wanted.prefixes), weights, k=wanted.count)
        after = wanted.prefixes * wanted.tokens
        return [
            self._cut(c * wanted.tokens, wanted.tokens) + self._cut(after + i * wanted.own, wanted.own)
            for i, c in enumerate(chosen)
        ]

    def _cut(self, first: int, count: int) -> list[int]:
        """Tokens of the stream; where it ends it begins again, with another first token each time round."""
        size = len(self.stream)
        piece = [self.stream[(first + i) % size] for i in range(count)]
        if first + count > size:
            piece[0] = (piece[0] + 1 + first // size) % 1000 + 100
        return piece

    def run(self, prompts: list[list[int]], **parameters: Any) -> list[Any]:
        """Greedy generation of all prompts together."""
        sampling = self.sampling(temperature=0, ignore_eos=True, detokenize=False, **parameters)
        return self.llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)

    def holds(self, step: Step) -> bool:
        """Whether the engine's pages hold all of a step's prompts with their new tokens."""
        assert step.prompts is not None
        cache = self.llm.llm_engine.vllm_config.cache_config
        longest = step.prompts.tokens + 4 + step.new
        return step.prompts.count * (-(-longest // cache.block_size) + 1) < cache.num_gpu_blocks

    def pending(self) -> bool:
        """Whether vLLM still moves chunks."""
        connector = self.llm.llm_engine.engine_core.engine_core.scheduler.get_kv_connector()
        return connector is not None and bool(connector.has_pending_push_work())

    def forget(self, cold: bool = False) -> None:
        """Empty the engine's own prefix cache; what tiers hold stays, with `cold` only what is behind vLLM's CPU memory. It can only
        when no page is in use any more."""
        for _ in range(RESET_TRIES):
            if self.llm.reset_prefix_cache(**({"reset_connector": True} if cold else {})):
                return
            self.run([[1, 2, 3]], max_tokens=2)
        raise RuntimeError("vLLM does not empty its prefix cache: pages stay in use")


def archives() -> list[Any]:
    """Those of the tier in this process; none where vLLM runs without it."""
    if "spectralquant.integrations.vllm.archives" not in sys.modules:
        return []
    from spectralquant.integrations.vllm.archives import live_archives

    return live_archives()


def do(engine: Engine, step: Step, beside: Path) -> dict[str, Any]:
    """Carry out one step; its report."""
    if step.do == "settle":
        return {"seconds": settle(engine)}
    if step.do == "forget":
        engine.forget(cold=True)
        return {}
    assert step.prompts is not None
    if step.if_fits and not engine.holds(step):
        return {"left_out": "the engine's pages do not hold these prompts at once"}
    prompts = engine.prompts(step.prompts)
    if step.do == "fill":
        start = time.perf_counter()
        for ids in prompts:
            engine.run([ids], max_tokens=4)
            settle(
                engine, still_seconds()
            )  # chunks that wait for the tier keep vLLM's rows, and others would not be taken
        return {"seconds": time.perf_counter() - start}
    if step.do == "batch":
        engine.run(prompts, max_tokens=4)
        seconds = []
        for _ in range(BATCHES):
            start = time.perf_counter()
            engine.run(prompts, max_tokens=4)
            first = time.perf_counter() - start
            start = time.perf_counter()
            engine.run(prompts, max_tokens=4 + step.new)
            seconds.append(time.perf_counter() - start - first)
        return {"tokens_per_s": [len(prompts) * step.new / s for s in seconds]}
    if step.do == "texts":
        return texts(engine, prompts, step, beside)
    return times(engine, prompts * step.rounds, forget=True, cold=step.cold)


def times(engine: Engine, prompts: list[list[int]], forget: bool, cold: bool = False) -> dict[str, Any]:
    """Seconds to the first token of each prompt alone, and how many of its tokens were not computed."""
    seconds, cached = [], []
    for ids in prompts:
        if forget:
            engine.forget(cold)
        start = time.perf_counter()
        output = engine.run([ids], max_tokens=1)[0]
        seconds.append(time.perf_counter() - start)
        cached.append(output.num_cached_tokens or 0)
    return {"seconds": seconds, "cached_tokens": cached, "prompt_tokens": [len(ids) for ids in prompts]}


def texts(engine: Engine, prompts: list[list[int]], step: Step, beside: Path) -> dict[str, Any]:
    """Greedy tokens; log-probabilities `[prompts, new, vocabulary]` go into a file."""
    size = engine.llm.llm_engine.model_config.get_vocab_size()
    numbers = np.full((len(prompts), step.new, size), -np.inf, np.float32)
    tokens, cached = [], []
    for row, ids in enumerate(prompts):
        engine.forget()
        output = engine.run([ids], max_tokens=step.new, logprobs=-1)[0]
        tokens.append(list(output.outputs[0].token_ids))
        cached.append(output.num_cached_tokens or 0)
        for column, entry in enumerate(output.outputs[0].logprobs):
            numbers[row, column, list(entry)] = [one.logprob for one in entry.values()]
    np.save(numbers_file(beside, step.name), numbers)
    return {"tokens": tokens, "cached_tokens": cached, "prompt_tokens": [len(ids) for ids in prompts]}


def numbers_file(report_file: Path, step: str) -> Path:
    """Where a step's log-probabilities are."""
    return report_file.with_name(f"{report_file.name}.{step}.npy")


def still_seconds() -> float:
    """How long nothing may happen before nothing is on its way any more."""
    import torch

    return STILL_SECONDS_GPU if torch.cuda.is_available() else STILL_SECONDS


def settle(engine: Engine, still: float = STILL_SECONDS) -> float:
    """Step the engine as a server would until nothing is on its way to a store; seconds waited."""
    start = last = time.perf_counter()
    before: Any = None
    while time.perf_counter() - start < SETTLE_SECONDS:
        engine.run([[1, 2, 3]], max_tokens=2)
        now = [engine.pending(), *(a.tally for a in archives())]
        if now != before or now[0]:
            before, last = now, time.perf_counter()
        if time.perf_counter() - last > still:
            break
        time.sleep(0.02)
    return last - start


def facts() -> dict[str, Any]:
    """Versions and the device."""
    import torch
    import vllm

    from spectralquant.provenance import device_facts

    return {"vllm": vllm.__version__, **device_facts(torch.device("cuda" if torch.cuda.is_available() else "cpu"))}


def main(order_file: str, report_file: str) -> None:
    """Do what the order says; the report is written after every step, so that a crash shows how far it came."""
    order, report = order_of(read_json(order_file, "The order")), Report()
    start = time.perf_counter()
    engine = Engine(order)
    pages = engine.llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
    report.facts = {**facts(), "start_s": time.perf_counter() - start, "pages": pages}
    for step in order.steps:
        report.steps[step.name] = do(engine, step, Path(report_file))
        for archive in archives():
            report.steps[step.name]["tally"] = dataclasses.asdict(archive.tally)
            report.tally = report.steps[step.name]["tally"]
            report.usage = archive.store.disk_usage()
        write_json(report_file, json.loads(json.dumps(dataclasses.asdict(report))))
        print(f"{step.name}: {step.do} done", file=sys.stderr, flush=True)


def wait_for_order(architectures: list[str]) -> None:
    """Import the engine; then carry out the order whose file, and its report's, come by standard input. At its end, nothing.

    architectures: of the model; vLLM looks at one in a process of its own, for half a minute on a machine that is new to it.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm

    vllm.LLM, vllm.SamplingParams  # noqa: B018  (imported when they are asked for)
    with contextlib.suppress(Exception):  # else it looks later
        from vllm.model_executor.models import ModelRegistry

        for name in architectures:
            ModelRegistry.models[name].inspect_model_cls()
    order_file, report_file = (sys.stdin.readline().strip() for _ in range(2))
    if report_file:
        main(order_file, report_file)


if __name__ == "__main__":
    if sys.argv[1:2] == [WAIT]:
        wait_for_order(sys.argv[2:])
    else:
        main(*sys.argv[1:])
