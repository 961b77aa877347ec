"""Run a task's trials through methods, in the streaming or in the prompt protocol."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence

from spectralquant.errors import InputError, did_you_mean
from spectralquant.evaluation.streaming import stream_window
from spectralquant.evaluation.tasks.names import task_files
from spectralquant.methods.base import AnyMethod
from spectralquant.methods.eviction.evictor import PROMPT
from spectralquant.models.load import LoadedModel
from spectralquant.results.quality import TaskScore


def parse_tasks(text: str) -> tuple[str, ...]:
    """Task names of `needle,copying`, or `all`.

    Raises:
        InputError: a name that there is not.
    """
    names = task_files() if text == "all" else tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in task_files():
            known = ", ".join(task_files())
            raise InputError(
                f"--tasks: there is no task {name!r}; there are {known}.{did_you_mean(name, task_files())}"
            )
    return tuple(dict.fromkeys(names))


def run_task(
    loaded: LoadedModel,
    methods: Sequence[AnyMethod],
    name: str,
    context: int,
    *,
    trials: int,
    mode: str,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TaskScore]:
    """A score a method. A trial counts when every token of the answer is the first choice, as greedy decoding prints it.

    In the prompt protocol everything before the answer is the prompt, but its last token is read again from the compressed
    cache, so that the answer's first token is no gift.
    """
    chooser, make = random.Random(seed), importlib.import_module(f"{__package__}.{name}").TASK
    hits, exact = [0] * len(methods), 0
    for turn in range(trials):
        progress(turn, trials)
        trial = make(loaded.tokenizer, context, chooser, turn)
        prompt = len(trial.ids) - trial.answer - 1 if mode == PROMPT else 0
        totals = stream_window(loaded.model, loaded.geometry, trial.ids, methods, answer=trial.answer, prompt=prompt)
        hits = [count + total.answered for count, total in zip(hits, totals, strict=True)]
        exact += totals[0].exact_answered
    progress(trials, trials)
    return [
        TaskScore(context=context, trials=trials, score=count / trials, uncompressed=exact / trials) for count in hits
    ]
