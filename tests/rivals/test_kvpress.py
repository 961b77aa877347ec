"""Evicting rivals keep exactly the tokens that kvpress keeps of the same prompt, in every layer and head.

`make test-rivals` has kvpress write its choices in an environment of its own, then runs these tests.
"""

import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectralquant.evaluation.streaming import stream_window
from spectralquant.methods.eviction.evictor import Evictor
from spectralquant.methods.eviction.expected_attention import ExpectedAttention
from spectralquant.methods.eviction.snapkv import SnapKV
from spectralquant.methods.eviction.streaming_llm import StreamingLLM
from spectralquant.models.probe import probe_geometry

REFERENCE = os.environ.get("SQ_RIVALS", "")
pytestmark = pytest.mark.skipif(not REFERENCE, reason="needs what kvpress_reference.py writes: make test-rivals")


@dataclass(frozen=True)
class Observed(Evictor):
    """kvpress's ObservedAttention out of our attention sums: the mean attention from all queries that could read a token."""

    name: ClassVar[str] = "observed"

    def scores(self, history, budget):
        return history.accumulated / (history.age + 1)


class Choice:
    """A method, and what it chose."""

    exact_bits, name, options, mode = 16, "recorded", {}, "prompt"

    def __init__(self, method):
        self.method, self.kept, self.reads_content = method, None, method.reads_content

    def choose(self, history, held, length):
        self.kept = self.method.choose(history, held, length)
        return self.kept

    def held_bytes(self, kept, geometry):
        return 1


@pytest.fixture(scope="module")
def reference():
    return torch.load(REFERENCE, weights_only=True)


@pytest.fixture(scope="module")
def model(reference):
    found = LlamaForCausalLM(LlamaConfig(**reference["config"])).eval()
    found.load_state_dict(reference["weights"])
    return found


METHODS = {
    "SnapKVPress": SnapKV,
    "StreamingLLMPress": StreamingLLM,
    "ObservedAttentionPress": Observed,
    "ExpectedAttentionPress": ExpectedAttention,
}


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("press", METHODS)
def test_the_same_tokens_are_kept_and_the_same_logits_follow(model, reference, press, keep):
    ids, length = reference["ids"], reference["length"]
    theirs, nll = reference["cases"][f"{press} {keep}"]
    choice = Choice(METHODS[press](keep, "prompt"))
    total = stream_window(model, probe_geometry(model), ids, [choice], prompt=length)[0]
    assert choice.kept.sum(-1).unique().tolist() == theirs.sum(-1).unique().tolist()
    assert torch.equal(choice.kept, theirs), f"{int((choice.kept ^ theirs).sum())} entries differ"
    assert total.nll == pytest.approx(nll, rel=1e-4), "what follows the prompt reads what is kept"
    assert abs(total.nll - total.exact_nll) > 1e-3, "the prompt was really pressed"
