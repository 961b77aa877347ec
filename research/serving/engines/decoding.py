"""Decoding timed step by step, so that reading prompts has no part in it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SKIPPED = 8  # tokens of every sequence, until all of them decode and what runs for the first time has run
_numbers = itertools.count()


@dataclass
class Decoded:
    """moments: after each of the engine's steps in which all sequences decoded, seconds on the clock and tokens of all of them so far.
    connector_s: seconds of these that were spent in vLLM's connector, by its scheduler and its worker.
    """

    moments: list[tuple[float, int]] = field(default_factory=list)
    connector_s: float = 0.0

    def tokens_per_s(self, pieces: int = 1) -> list[float]:
        """Of `pieces` stretches of as many steps each.

        Raises:
            ValueError: fewer steps than that.
        """
        steps = (len(self.moments) - 1) // pieces
        if steps < 1:
            raise ValueError(f"{len(self.moments)} steps in which all sequences decode are too few for {pieces} pieces")
        ends = self.moments[:: max(1, steps)][: pieces + 1]
        return [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(ends)]

    def step_s(self) -> float:
        """Median of a step."""
        return statistics.median(b[0] - a[0] for a, b in itertools.pairwise(self.moments))

    def connector_s_a_step(self) -> float:
        """Mean."""
        return self.connector_s / max(1, len(self.moments) - 1)


class ConnectorClock:
    """Seconds spent in an engine's connector, in this process: its scheduler's part and its worker's."""

    SCHEDULER = (
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "build_connector_meta",
        "update_connector_output",
    )
    WORKER = (
        "handle_preemptions",
        "bind_connector_metadata",
        "start_load_kv",
        "wait_for_save",
        "get_finished",
        "get_kv_connector_stats",
        "build_connector_worker_meta",
    )

    def __init__(self, llm: Any) -> None:
        self.seconds = 0.0
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler.get_kv_connector()
        if scheduler is None:
            return
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        self._watch(scheduler, self.SCHEDULER)
        if has_kv_transfer_group():
            self._watch(get_kv_transfer_group(), self.WORKER)

    def _watch(self, connector: Any, names: tuple[str, ...]) -> None:
        for name in names:
            if callable(method := getattr(connector, name, None)):
                setattr(connector, name, self._timed(method))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*given, **named)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def decode(llm: Any, prompts: list[list[int]], parameters: Any, clock: ConnectorClock | None = None) -> Decoded:
    """Decode `prompts` together by vLLM's `parameters`, as many tokens each, step by step."""
    core, out = llm.llm_engine, Decoded()
    for ids in prompts:
        core.add_request(f"decode-{next(_numbers)}", {"prompt_token_ids": ids}, parameters)
    tokens: dict[str, int] = {}
    spent = 0.0
    ended = False
    while core.has_unfinished_requests():
        outputs = core.step()
        now = time.perf_counter()
        for output in outputs:
            tokens[output.request_id] = len(output.outputs[0].token_ids)
        all_decode = len(tokens) == len(prompts) and min(tokens.values()) >= SKIPPED
        if outputs and all_decode and not ended:
            if not out.moments and clock is not None:
                spent = clock.seconds
            out.moments.append((now, sum(tokens.values())))
            out.connector_s = clock.seconds - spent if clock is not None else 0.0
        ended = ended or any(output.finished for output in outputs)
    return out
