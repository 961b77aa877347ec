"""Which cells `sq profile --generate` measures, and in what order: what is compared most comes first.

A run may be cut off by a time limit. Within a stage what costs seconds comes before what costs a minute: whole steps and
graphs over hot codes (about 8 s a cell on an H100 at 8B), then the compiled StaticCache (about 50 s of compilation for every
shape, and 128 steps of 10 to 115 ms), then eager caches (128 steps of 40 to 100 ms), then first tokens, which read prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from spectralquant.bench.generate.contenders import least_tokens
from spectralquant.errors import InputError

STAGES = (((32768, 1), (32768, 8)), ((8192, 1), (8192, 8)), ((131072, 1),))
BATCHES_LAST = (4, 16)
WHOLE_STEPS = ((32768, 1), (32768, 8))
PROMPTS_UP_TO = 32768
WARM = ((8192, 1), (32768, 1))
CAPACITY_CONTEXT = 32768
GRAPHS = ("hot", "hot_select")

Pair = tuple[int, int]


@dataclass(frozen=True)
class GenerateRequest:
    """What to measure: contexts (prompt and answer together), batches, new tokens, the share that an index selects."""

    contexts: tuple[int, ...] = (8192, 32768, 131072)
    batches: tuple[int, ...] = (1, 4, 8, 16)
    new: int = 128
    select: float = 0.05

    def check(self, limit: int | None) -> None:
        """Raise InputError for lengths that no contender takes."""
        least = least_tokens() + self.new
        if min(self.contexts) < least:
            raise InputError(f"--context must be at least {least:,}: below, nothing is compressed.")
        if limit is not None and max(self.contexts) > limit:
            raise InputError(f"--context {max(self.contexts):,} is beyond the model's {limit:,} positions.")

    @property
    def stages(self) -> list[list[Pair]]:
        """Every context and batch once, in the order of `STAGES`, then the others, batch by batch."""
        pairs = [(c, b) for c in self.contexts for b in self.batches]
        stages = [[pair for pair in stage if pair in pairs] for stage in STAGES]
        named = {pair for stage in stages for pair in stage}
        others = [b for b in self.batches if b not in BATCHES_LAST]
        for batch in (*others, *(b for b in BATCHES_LAST if b in self.batches)):
            stages.append([pair for pair in pairs if pair[1] == batch and pair not in named])
        return [stage for stage in stages if stage]


@dataclass(frozen=True)
class Cell:
    """A contender at a context and a batch (0: of none, or the largest that fits); kind: decode, first_token, capacity,
    whole_step or first_calls."""

    kind: str
    method: str
    context: int = 0
    batch: int = 0


def pair_of(name: str) -> str:
    """Context and batch of a cell by its name (`str`): cells that are compared with each other are measured on one GPU."""
    return " ".join(re.findall(r"(?:context|batch)=\d+", name))


def cells_of(request: GenerateRequest, *, gpu: bool) -> Iterator[Cell]:
    """Cells in the order that they are measured in. gpu: with those that only a GPU can measure (`generate`
    compiles nothing elsewhere)."""
    prompts = set()
    for number, stage in enumerate(request.stages):
        for pair in stage:
            if gpu and pair in WHOLE_STEPS:
                yield Cell("whole_step", "hot", *pair)
            yield from (Cell("decode", method, *pair) for method in GRAPHS)
        for method in ("static_compiled", "dynamic") if gpu else ("dynamic",):
            yield from (Cell("decode", method, *pair) for pair in stage)
        if gpu and number == 0:
            yield Cell("first_calls", "hot")
        for context in sorted({c for c, _ in stage if c <= PROMPTS_UP_TO} - prompts):
            prompts.add(context)
            yield from (Cell("first_token", method, context, 1) for method in ("dynamic", *GRAPHS))
    if CAPACITY_CONTEXT in request.contexts:
        yield from (Cell("capacity", method, CAPACITY_CONTEXT) for method in ("hot", "dynamic"))
    pairs = {pair for stage in request.stages for pair in stage}
    yield from (Cell("decode", "warm", *pair) for pair in WARM if pair in pairs)
