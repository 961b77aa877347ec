"""`python -m research.serving.engines.engine ORDER.json REPORT.json`: an engine's process that does more than that of `serve_check.child`.

batch: decodes prompts together, timed step by step. texts: as there, but with what `texts_after` names done before each prompt.
With a third word, the number of a pipe, it answers each line of its standard input there: see `rounds`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from research.serving.engines.decoding import ConnectorClock, Decoded, decode
from research.serving.engines.turboquant import lacks_flash_attention_2, without_flash_attention_2
from spectralquant.files import read_json, write_json
from spectralquant.integrations.serve_check import child
from spectralquant.integrations.serve_check.orders import Order, Prompts, Report, Step, order_of

ENGINE = "research.serving.engines.engine"
PIECES = 5
AFTER = " after "
Before = Literal["forget", "forget-memory", "read"]


def texts_after(before: Before, name: str, prompts: Prompts, new: int) -> Step:
    """Texts, and before each of their prompts: `forget` the engine's own prefix cache; `forget-memory`, what vLLM keeps in CPU memory
    too; `read` the prompt once, so that it comes from the engine's own prefix cache.
    """
    return Step("texts", f"{name}{AFTER}{before}", prompts, new)


def started(order: Order) -> child.Engine:
    """vLLM in this process; its turboquant without FlashAttention 2 where that was not built."""
    if str(order.engine.get("kv_cache_dtype", "")).startswith("turboquant") and lacks_flash_attention_2():
        without_flash_attention_2()
    return child.Engine(order)


def do(engine: child.Engine, step: Step, beside: Path) -> dict[str, Any]:
    """Carry out one step; its report."""
    if step.do == "batch":
        return batch(engine, step)
    if step.do == "texts" and AFTER in step.name:
        return texts(engine, step, beside)
    return child.do(engine, step, beside)


def batch(engine: child.Engine, step: Step) -> dict[str, Any]:
    """Prompts are read first, but for those that are in the engine's prefix cache; then all decode together."""
    assert step.prompts is not None
    if step.if_fits and not engine.holds(step):
        say(f"{step.name}: left out, the engine's pages do not hold {step.prompts.count} such prompts at once")
        return {"left_out": "the engine's pages do not hold these prompts at once"}
    prompts = engine.prompts(step.prompts)
    begin = time.perf_counter()
    cached = sum(output.num_cached_tokens or 0 for output in engine.run(prompts, max_tokens=1))
    read_s, count = time.perf_counter() - begin, sum(map(len, prompts))
    say(
        f"{step.name}: {count - cached:,} tokens of {len(prompts)} prompts read in {read_s:.1f} s, {cached:,} were cached"
    )
    decoded = decoded_together(engine, prompts, step.new)
    rates = decoded.tokens_per_s(PIECES)
    say(f"{step.name}: {' '.join(f'{rate:.0f}' for rate in rates)} tokens/s, {1e3 * decoded.step_s():.2f} ms a step")
    return {"tokens_per_s": rates, "step_s": decoded.step_s(), "read_s": read_s, "read_tokens": count - cached}


def decoded_together(
    engine: child.Engine, prompts: list[list[int]], new: int, clock: ConnectorClock | None = None
) -> Decoded:
    """`new` tokens of each."""
    parameters = engine.sampling(temperature=0, ignore_eos=True, detokenize=False, max_tokens=new)
    return decode(engine.llm, prompts, parameters, clock)


def texts(engine: child.Engine, step: Step, beside: Path) -> dict[str, Any]:
    """As the child's, prompt by prompt, with something done before each."""
    assert step.prompts is not None
    before = step.name.partition(AFTER)[2]
    size = engine.llm.llm_engine.model_config.get_vocab_size()
    prompts = engine.prompts(step.prompts)
    numbers = np.full((len(prompts), step.new, size), -np.inf, np.float32)
    tokens, cached = [], []
    for row, ids in enumerate(prompts):
        if before == "read":
            if row == 0:
                engine.forget()
            engine.run([ids], max_tokens=1)
        else:
            engine.forget(cold=before == "forget-memory")
        output = engine.run([ids], max_tokens=step.new, logprobs=-1)[0]
        tokens.append(list(output.outputs[0].token_ids))
        cached.append(output.num_cached_tokens or 0)
        for column, entry in enumerate(output.outputs[0].logprobs):
            numbers[row, column, list(entry)] = [one.logprob for one in entry.values()]
    np.save(child.numbers_file(beside, step.name), numbers)
    return {"tokens": tokens, "cached_tokens": cached, "prompt_tokens": [len(ids) for ids in prompts]}


def say(line: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(order_file: str, report_file: str) -> None:
    """Do what the order says; the report is written after every step, so that a crash shows how far it came."""
    order, report = order_of(read_json(order_file, "The order")), Report()
    say(f"starting vLLM for {', '.join(step.name for step in order.steps)}")
    begin = time.perf_counter()
    engine = started(order)
    report.facts = facts(engine, begin)
    for step in order.steps:
        report.steps[step.name] = do(engine, step, Path(report_file))
        for archive in child.archives():
            report.steps[step.name]["tally"] = dataclasses.asdict(archive.tally)
            report.tally = report.steps[step.name]["tally"]
            report.usage = archive.store.disk_usage()
        write_json(report_file, json.loads(json.dumps(dataclasses.asdict(report))))
        say(f"{step.name}: {step.do} done")


def facts(engine: child.Engine, begin: float) -> dict[str, Any]:
    """Versions, the device, seconds since `begin` and how many pages the engine has."""
    pages = engine.llm.llm_engine.vllm_config.cache_config.num_gpu_blocks
    start_s = time.perf_counter() - begin
    say(f"vLLM is ready after {start_s:.1f} s, with {pages:,} pages")
    return {**child.facts(), "start_s": start_s, "pages": pages}


def answer_rounds(order_file: str, pipe: int) -> None:
    """Imports; at the first line of standard input it starts vLLM. Each later line is a number: decode that many'th part of the
    stream of tokens as the order's prompts, and once more, and answer with both rounds' figures.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm

    vllm.LLM, vllm.SamplingParams  # noqa: B018  (imported when they are asked for)
    with os.fdopen(pipe, "w") as answers:

        def answer(**figures: Any) -> None:
            print(json.dumps(figures), file=answers, flush=True)

        if not sys.stdin.readline():
            return
        order = order_of(read_json(order_file, "The order"))
        begin = time.perf_counter()
        engine = started(order)
        clock = ConnectorClock(engine.llm)
        answer(facts=facts(engine, begin))
        step = order.steps[0]
        assert step.prompts is not None
        for line in sys.stdin:
            prompts = engine.prompts(dataclasses.replace(step.prompts, part=int(line) * step.prompts.count))
            rounds = {}
            for name in ("storing", "stored"):
                decoded = decoded_together(engine, prompts, step.new, clock)
                rounds[name] = {
                    "tokens_per_s": decoded.tokens_per_s()[0],
                    "step_s": decoded.step_s(),
                    "connector_s": decoded.connector_s_a_step(),
                }
                child.settle(engine, child.still_seconds())
            say(f"part {int(line)}: {rounds}")
            answer(rounds=rounds)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        answer_rounds(sys.argv[1], int(sys.argv[3]))
    else:
        main(*sys.argv[1:])
