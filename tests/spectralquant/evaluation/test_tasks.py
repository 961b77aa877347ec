"""Tasks: texts that hold their answer once more, far back; scores that tell a good codec from a ruined one."""

import random

import pytest
import torch
from conftest import profile_of

from spectralquant.errors import InputError
from spectralquant.evaluation.tasks.names import task_files
from spectralquant.evaluation.tasks.run import parse_tasks, run_task
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import get


def trial(name, context=640, turn=0, seed=0):
    import importlib

    loaded, _ = profile_of("llama")
    make = importlib.import_module(f"spectralquant.evaluation.tasks.{name}").TASK
    return loaded, make(loaded.tokenizer, context, random.Random(seed), turn)


@pytest.mark.parametrize("name", task_files())
def test_the_answer_stands_far_back_and_nowhere_near(name):
    loaded, made = trial(name, 900)
    assert made.ids.dtype == torch.int64 and 700 < len(made.ids) <= 900
    answer = loaded.tokenizer.decode(made.ids[-made.answer :]).strip()
    before = loaded.tokenizer.decode(made.ids[: -made.answer])
    assert answer in before, "it can be read off the text"
    assert answer not in loaded.tokenizer.decode(made.ids[-made.answer - 40 : -made.answer]), (
        "but not off the last tokens"
    )
    _, other = trial(name, 900, seed=1)
    assert not torch.equal(made.ids[-made.answer :], other.ids[-other.answer :]) or name == "turns"


def test_depths_are_taken_in_turn():
    first, second = (trial("needle", turn=t)[1] for t in (0, 1))
    loaded, _ = profile_of("llama")
    place = lambda t: loaded.tokenizer.decode(t.ids).index("The pass key is")  # noqa: E731
    assert place(first) < place(second)


@pytest.mark.parametrize("mode", ["streaming", "prompt"])
def test_scores_are_shares_of_trials_and_the_uncompressed_models_stands_beside(mode):
    loaded, profile = profile_of("llama")
    context = MethodContext(loaded, profile)
    methods = [get(n, **o).build(context) for n, o in (("none", {}), ("streaming_llm", {"keep": 0.1, "mode": mode}))]
    scores = run_task(loaded, methods, "copying", 640, trials=2, mode=mode)
    assert [s.trials for s in scores] == [2, 2] and scores[0].uncompressed == scores[1].uncompressed
    assert scores[0].score == scores[0].uncompressed, "half precision answers as the model does"


@pytest.mark.model
@pytest.mark.slow
def test_a_window_of_recent_tokens_cannot_answer_what_the_model_can(builtin):
    context = MethodContext(builtin)
    methods = [get(n, **o).build(context) for n, o in (("turboquant", {"bits": 4}), ("streaming_llm", {"keep": 0.2, "mode": "prompt"}))]  # fmt: skip
    good, blind = run_task(builtin, methods, "needle", 640, trials=2, mode="prompt")
    assert good.uncompressed == 1.0 and good.score == 1.0 and blind.score == 0.0


def test_names_and_room():
    assert parse_tasks("all") == task_files() == ("copying", "key_value", "needle", "needles", "turns")
    assert parse_tasks("needle, copying") == ("needle", "copying") and parse_tasks("") == ()
    with pytest.raises(InputError, match=r"no task 'needel'.*needle"):
        parse_tasks("needel")
    with pytest.raises(InputError, match="too short"):
        trial("needles", 100)
