"""`python -m research.serving.decode_alone OUT`: decode speed with and without tiers, by engines that have the GPU to themselves.

In part `decode` of `sq study serving` engines lie side by side on one GPU and take turns: what changes in time changes it for all of them, but where
an engine's weights and pages lie on the card differs. Here every engine is alone on it, one after the other, forth and back; then all lie
side by side as there, started in the opposite order. Rows are named `alone/…` and `opposite/…`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from research.serving.engines.rounds import Report, Rounds, Turns, decoding_results, take_turns
from research.serving.shape import save_shape
from research.serving.study import (
    DECODE_BATCH,
    DECODE_PROMPT,
    DECODED,
    GIB,
    GRAPHS,
    LARGE,
    LARGE_RATIO,
    SHAPE,
    VLLM_OWN,
)
from research.serving.study import _python as in_another_process
from spectralquant.errors import SpectralQuantError
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.check import UNFINISHED
from spectralquant.integrations.serve_check.machine import engine_arguments
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm
from spectralquant.integrations.serve_check.ways import RECOMPUTE, SPECTRAL, ours, vllm_own
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results

NAMES = (RECOMPUTE, VLLM_OWN, SPECTRAL)
PASSES, ROUNDS = 2, 4
PAGES = 3 * GIB  # of an engine: three lie side by side on a card of 80 GB
ALONE, OPPOSITE = "alone", "opposite"
Settings = Mapping[str, object]


def decode_alone(folder: Path, out: Path, report: Report) -> Results:
    """Engines alone, pass by pass, then side by side; OUT gets what there is after every pass.

    Raises:
        InputError: there is no GPU or no vLLM, or an engine ended.
    """
    require_vllm(1, "Decoding by engines alone")
    model, profile = folder / "8b", folder / "8b-profile"
    save_shape(model, SHAPE)
    groups = [*((name,) for name in forth_and_back(NAMES, PASSES)), NAMES[::-1]]
    alone: dict[str, list[Rounds]] = {name: [] for name in NAMES}
    with ExitStack() as stack:
        # all import at once, and none has anything on the GPU until it is told to start
        engines = [_engines(group, stack, model, profile, folder / str(n)) for n, group in enumerate(groups)]
        order = _order(RECOMPUTE, model, profile, folder)
        settings = {"model": f"{LARGE}, dummy weights", "rounds": ROUNDS, "passes": PASSES, "engine": order.engine}
        report("making a profile for serving an 8B shape")
        in_another_process("research.serving.large", "", str(profile), LARGE, str(LARGE_RATIO))
        for group in engines[:-1]:
            for name, rounds in _taken(group, report).items():
                alone[name].append(rounds)
            if len({len(some) for some in alone.values()}) == 1:
                write_json(out, results(joined(alone), None, order, settings).as_json())
        beside = _taken(engines[-1], report)
    done = results(joined(alone), {name: beside[name] for name in NAMES}, order, settings)
    write_json(out, done.as_json())
    return done


def forth_and_back(names: tuple[str, ...], passes: int) -> list[str]:
    """All names `passes` times, every other time from the last to the first."""
    return [name for n in range(passes) for name in (names[::-1] if n % 2 else names)]


def joined(passes: Mapping[str, list[Rounds]]) -> dict[str, Rounds]:
    """The rounds of all passes of each engine."""
    return {name: Rounds(some[0].facts, [one for each in some for one in each.rounds]) for name, some in passes.items()}


def results(
    alone: Mapping[str, Rounds], beside: Mapping[str, Rounds] | None, order: Order, settings: Settings
) -> Results:
    """Rows and the summary's figures of both, named by which; without `beside` it says what is still to come."""
    parts = {ALONE: decoding_results(alone, RECOMPUTE, VLLM_OWN, SPECTRAL, order, settings)}
    if beside is not None:
        parts[OPPOSITE] = decoding_results(beside, RECOMPUTE, VLLM_OWN, SPECTRAL, order, settings)
    first = parts[ALONE]
    return results_file(
        "serving",
        [row.updated(way=f"{name}/{row.way}") for name, part in parts.items() for row in part.rows],
        first.provenance,
        summary={f"{name}_{figure}": x for name, part in parts.items() for figure, x in part.summary.items()},
        settings=dict(settings) | ({} if beside is not None else {UNFINISHED: ["later passes"]}),
        engine=first.engine,
    )


def _engines(names: tuple[str, ...], stack: ExitStack, model: Path, profile: Path, folder: Path) -> dict[str, Turns]:
    """Their processes, each with stores of its own, so that no prompt is there from an earlier one."""
    folder.mkdir()
    return {name: stack.enter_context(Turns(name, _order(name, model, profile, folder), folder)) for name in names}


def _taken(engines: dict[str, Turns], report: Report) -> dict[str, Rounds]:
    """The rounds of engines that are ended after them."""
    with ExitStack() as stack:
        for engine in engines.values():
            stack.push(engine)
        return take_turns(engines, ROUNDS, report, lambda done: None)


def _order(name: str, model: Path, profile: Path, folder: Path) -> Order:
    engine, _ = engine_arguments(2 * DECODE_PROMPT, eager=False)
    engine |= {"load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": DECODE_BATCH}
    engine |= {"compilation_config": GRAPHS, "gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": PAGES}
    transfers = {
        RECOMPUTE: None,
        VLLM_OWN: vllm_own(folder / "files", 4 * GIB),
        SPECTRAL: ours(folder / "store", 1 << 38, str(profile), "cuda", 4 * GIB),
    }
    steps = [Step("batch", "batch", Prompts("distinct", DECODE_BATCH, DECODE_PROMPT), DECODED)]
    return Order(str(model), engine, transfers[name], steps)


def main(*arguments: str) -> int:
    """0: OUT is complete; 2: it is not."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"One word is needed, the file to write. {str(__doc__).splitlines()[0]}", file=sys.stderr)
        return 2
    out = Path(arguments[0])
    if out.is_dir() or not out.parent.is_dir() or not os.access(out if out.exists() else out.parent, os.W_OK):
        print(f"{str(out)!r} cannot be written. Give a file in a folder that is there and yours.", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="sq-decode-alone-") as made:
            decode_alone(Path(made), out, lambda line: print(line, flush=True))
    except SpectralQuantError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
