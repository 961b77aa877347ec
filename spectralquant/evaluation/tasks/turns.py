"""`turns`: a conversation in which facts were told in early turns, and one is asked for in the last."""

from __future__ import annotations

from random import Random
from typing import Any

from spectralquant.evaluation.tasks.trial import Trial, hidden

FACTS = (
    ("dog", ("Rex", "Max", "Bella", "Luna", "Rocky")),
    ("favorite color", ("green", "purple", "orange", "yellow", "brown")),
    ("home town", ("Paris", "Madrid", "Berlin", "Vienna", "Athens")),
    ("favorite fruit", ("cherry", "banana", "mango", "peach", "lemon")),
)
PLACES = (0.1, 0.3, 0.5, 0.7)


def make(tokenizer: Any, context: int, chooser: Random, turn: int) -> Trial:
    """See the package."""
    told = [(thing, chooser.choice(names)) for thing, names in FACTS]
    say = "\nUser: My {thing} is called {name}.\nAssistant: I see, your {thing} is called {name}.\n"
    pieces = [(d, say.format(thing=t, name=n)) for d, (t, n) in zip(PLACES, told, strict=True)]
    thing, name = told[turn % len(told)]
    question = f"\nUser: What is my {thing} called?\nAssistant: I see, your {thing} is called"
    return hidden(tokenizer, context, pieces, question, f" {name}")


TASK = make
