"""Decoding timed by the engine's steps, and what is made of the rounds of engines that take turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from research.serving.engines import decoding
from research.serving.engines.decoding import SKIPPED, Decoded, decode
from research.serving.engines.rounds import Rounds, decoding_results
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step


class Core:
    """An engine whose sequences begin one after the other; its clock goes on by what a step takes."""

    def __init__(self, monkeypatch, new: int, step_s: float = 0.5, start_s: float = 100.0) -> None:
        self.now, self.new, self.step_s, self.start_s = 0.0, new, step_s, start_s
        self.tokens: dict[str, int] = {}
        monkeypatch.setattr(decoding.time, "perf_counter", lambda: self.now)

    def add_request(self, name, prompt, parameters):
        self.tokens[name] = 0

    def has_unfinished_requests(self):
        return any(count < self.new for count in self.tokens.values())

    def step(self):
        waiting = [name for name, count in self.tokens.items() if not count]
        self.now += self.start_s if waiting else self.step_s
        out = []
        for name, count in self.tokens.items():
            if (count or name == waiting[0]) and count < self.new:
                self.tokens[name] += 1
                done = SimpleNamespace(token_ids=range(self.tokens[name]))
                out.append(SimpleNamespace(request_id=name, outputs=[done], finished=self.tokens[name] == self.new))
        return out


def test_reading_prompts_has_no_part_in_the_rate(monkeypatch):
    core = Core(monkeypatch, new=40)
    decoded = decode(SimpleNamespace(llm_engine=core), [[1], [2], [3]], None)
    assert decoded.tokens_per_s() == [6.0] and decoded.step_s() == 0.5
    assert decoded.tokens_per_s(5) == [6.0] * 5
    assert (
        len(decoded.moments) == 40 - SKIPPED - 1
    )  # the last sequence is two tokens behind the first, whose end is the end


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="2 steps in which all sequences decode are too few for 5 pieces"):
        Decoded([(0.0, 8), (1.0, 16)]).tokens_per_s(5)


def rounds(*rates: float) -> Rounds:
    one = [
        {kind: {"tokens_per_s": r, "step_s": 8 / r, "connector_s": 0.0} for kind in ("storing", "stored")}
        for r in rates
    ]
    return Rounds({"start_s": 1.0, "pages": 9, "device": "H"}, one)


def test_ratios_are_of_rounds_beside_each_other():
    order = Order("m", {}, None, [Step("batch", "batch", Prompts("distinct", 8, 512), 100)])
    done = {"alone": rounds(100, 50, 100), "own": rounds(99, 49.5, 99), "ours": rounds(98, 49, 97)}
    result = decoding_results(done, "alone", "own", "ours", order, {})
    s = result.summary
    assert s["decode_over_recompute"] == pytest.approx(0.98) and s["decode_over_recompute_least"] == pytest.approx(0.97)
    assert s["decode_storing_over_vllm_tiers"] == pytest.approx(98 / 99) and s["decode_noise"] == pytest.approx(0.5)
    assert result.rows[2].decode_tokens_per_s == {"8": 97} and result.rows[0].decode_step_s["stored"] == 0.08
