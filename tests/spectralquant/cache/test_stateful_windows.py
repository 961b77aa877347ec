"""Random interleavings on layers of different windows: each holds what its next query reads, and nothing older than a block."""

import copy
import functools
import pickle

import pytest
import torch
from conftest import random_model
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spectralquant import SpectralCache
from spectralquant.cache.binding import bind
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK

WINDOWS, HEADS, DIM = (300, 64, None), 2, 16


@functools.cache
def model():
    """A model whose masks are found to be these: one sliding window is all that transformers' models have, so two are set."""
    made = random_model("llama")
    object.__setattr__(bind(made).geometry, "windows", WINDOWS)
    return made


class WindowMachine(RuleBasedStateMachine):
    """The model of a cache is every token that was ever added; a layer must give the newest ones that it can read."""

    @initialize(rows=st.integers(1, 2))
    def start(self, rows: int) -> None:
        self.cache = SpectralCache(model(), tier="exact")
        self.expected = [torch.zeros(2, rows, HEADS, 0, DIM) for _ in WINDOWS]
        self.generator = torch.Generator().manual_seed(0)

    @property
    def length(self) -> int:
        return self.expected[0].shape[3]

    @rule(tokens=st.sampled_from([1, 1, 2, 60, 130, 400]))
    def update(self, tokens: int) -> None:
        for layer in range(len(WINDOWS)):
            new = torch.randn(2, self.expected[0].shape[1], HEADS, tokens, DIM, generator=self.generator)
            self.cache.update(new[0], new[1], layer)
            self.expected[layer] = torch.cat([self.expected[layer], new], dim=3)
        self.cache.end_forward()

    @precondition(lambda self: self.length)
    @rule(share=st.floats(0, 1))
    def crop(self, share: float) -> None:
        drop = int(share * min(self.length, 200))
        target = self.length - drop
        possible = all(group.first <= group.kind.first_read(target) for group in self.cache.state.groups) or not target
        if drop and not possible:
            with pytest.raises(InputError, match="activate_past_recording"):
                self.cache.crop(-drop)
            return
        self.cache.crop(-drop)
        self.expected = [e[:, :, :, :target] for e in self.expected]

    @rule()
    def record(self) -> None:
        self.cache.activate_past_recording()

    @precondition(lambda self: self.length)
    @rule(data=st.data())
    def reorder(self, data) -> None:
        rows = self.expected[0].shape[1]
        index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=3)))
        self.cache.reorder_cache(index)
        self.expected = [e[:, index] for e in self.expected]

    @precondition(lambda self: self.length)
    @rule()
    def pack_and_unpack(self) -> None:
        self.cache = SpectralCache.unpack(model(), None, self.cache.pack())

    @rule(way=st.sampled_from(["deepcopy", "pickle"]))
    def copy(self, way: str) -> None:
        self.cache = copy.deepcopy(self.cache) if way == "deepcopy" else pickle.loads(pickle.dumps(self.cache))

    @invariant()
    def gives_what_can_be_read(self) -> None:
        if not hasattr(self, "expected") or not self.cache.batch_size:
            return
        assert self.cache.get_seq_length() == self.length
        for layer, window in enumerate(WINDOWS):
            tokens = self.length if window is None else min(self.length, window - 1)
            assert self.cache.layers[layer].get_mask_sizes(1) == (tokens + 1, self.length - tokens)
            for found, kind in zip(self.cache.view(layer, 0).dense(), self.expected[layer], strict=True):
                assert torch.equal(found, kind[:, :, self.length - tokens :])
        for group in self.cache.state.groups:
            if not group.recording:
                assert group.kind.first_read(self.length) < group.first + (BLOCK if group.coded else 1)
        groups = {group.window: group for group in self.cache.stats().groups}
        assert groups[64].coded_tokens == 0, "a window that stays exact anyhow"


WindowMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
test_interleavings_on_windows = WindowMachine.TestCase
