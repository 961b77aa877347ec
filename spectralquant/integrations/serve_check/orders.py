"""What a process with an engine is told to do, and what it reports: plain data, sent as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Does = Literal["times", "texts", "fill", "settle", "batch", "trace", "forget"]


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts, cut from a text (or drawn at random for a model without a tokenizer).

    shared: `count` prompts with one prefix of `tokens` tokens and `own` tokens each of their own. distinct: `count` prompts of
    `tokens` tokens, from the stream's part number `part` on. trace: `count` requests over `prefixes` prefixes of `tokens`
    tokens each, drawn by Zipf's law with `seed`, each with `own` tokens of its own.
    """

    kind: Literal["shared", "distinct", "trace"]
    count: int
    tokens: int
    own: int = 24
    part: int = 0
    prefixes: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One thing to do. `name` is the key of its report.

    times: seconds to the first token, each prompt alone, nothing of it in the engine's own prefix cache; `rounds` times all of
    them. cold: nor in what vLLM keeps in CPU memory, so that every one comes from the tier behind that.
    texts: greedy tokens and their log-probabilities (all of the vocabulary, in a file beside the report).
    fill: run the prompts so that the tier stores them. settle: wait until everything is stored.
    forget: empty what vLLM keeps in CPU memory, once. batch: decode `prompts` together, `new` tokens each: tokens a second. trace: as `times`, in order, hits counted.
    if_fits: leave it out where the engine's pages do not hold all prompts and new tokens at once.
    """

    do: Does
    name: str
    prompts: Prompts | None = None
    new: int = 1
    if_fits: bool = False
    rounds: int = 1
    cold: bool = False


@dataclass(frozen=True)
class Order:
    """An engine and what it does.

    engine: arguments of `vllm.LLM` but for the model. transfer: `kv_connector_extra_config` and the connector, or None.
    """

    model: str
    engine: dict[str, Any]
    transfer: dict[str, Any] | None
    steps: list[Step]
    text: str = "builtin:pydoc"


@dataclass
class Report:
    """What happened. steps: by name. tally: of the tier, at the end. facts: versions and device."""

    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    tally: dict[str, Any] | None = None
    usage: tuple[int, int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def order_of(data: dict[str, Any]) -> Order:
    """An order out of JSON."""
    steps = [Step(**{**s, "prompts": Prompts(**s["prompts"]) if s.get("prompts") else None}) for s in data["steps"]]
    return Order(**{**data, "steps": steps})
