"""Random interleavings of everything a cache can do, against a plain exact cache."""

import copy
import pickle

import torch
from conftest import profile_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spectralquant import SpectralCache

LAYERS, HEADS, DIM = 3, 2, 16


class CacheMachine(RuleBasedStateMachine):
    """The lossless tier behind the same machinery as the coded ones; the model of it is two plain tensors."""

    @initialize(rows=st.integers(1, 3))
    def start(self, rows: int) -> None:
        self.model = profile_of("llama")[0].model
        self.profile = profile_of("llama")[1]
        self.cache = SpectralCache(self.model, tier="exact")
        self.expected = [torch.zeros(2, rows, HEADS, 0, DIM) for _ in range(LAYERS)]
        self.generator = torch.Generator().manual_seed(0)

    @property
    def length(self) -> int:
        return self.expected[0].shape[3]

    @property
    def rows(self) -> int:
        return self.expected[0].shape[1]

    @rule(tokens=st.sampled_from([1, 1, 3, 64, 130, 300]))
    def update(self, tokens: int) -> None:
        for layer in range(LAYERS):
            new = torch.randn(2, self.rows, HEADS, tokens, DIM, generator=self.generator)
            self.cache.update(new[0], new[1], layer)
            self.expected[layer] = torch.cat([self.expected[layer], new], dim=3)
        self.cache.end_forward()

    @precondition(lambda self: self.length)
    @rule(share=st.floats(0, 1))
    def crop(self, share: float) -> None:
        drop = int(share * min(self.length, 400))
        self.cache.crop(-drop)
        self.expected = [e[:, :, :, : self.length - drop] for e in self.expected]

    @precondition(lambda self: self.length)
    @rule(data=st.data())
    def reorder(self, data) -> None:
        index = torch.tensor(data.draw(st.lists(st.integers(0, self.rows - 1), min_size=1, max_size=3)))
        self.cache.reorder_cache(index)
        self.expected = [e[:, index] for e in self.expected]

    @precondition(lambda self: self.length)
    @rule()
    def pack_and_unpack(self) -> None:
        self.cache = SpectralCache.unpack(self.model, None, self.cache.pack())

    @rule(way=st.sampled_from(["deepcopy", "pickle"]))
    def copy(self, way: str) -> None:
        self.cache = copy.deepcopy(self.cache) if way == "deepcopy" else pickle.loads(pickle.dumps(self.cache))

    @precondition(lambda self: self.length)
    @rule(blocks=st.integers(1, 3))
    def demote(self, blocks: int) -> None:
        self.cache.demote(blocks)

    @rule()
    def reset(self) -> None:
        if self.length > 600:
            self.cache.reset()
            self.expected = [e[:, :, :, :0] for e in self.expected]

    @invariant()
    def equals_the_plain_cache(self) -> None:
        if not hasattr(self, "expected") or not self.cache.batch_size:
            return
        assert self.cache.get_seq_length() == self.length
        if not self.length:
            return
        for layer in range(LAYERS):
            view = self.cache.view(layer)
            keys, values = view.dense()
            assert torch.equal(keys, self.expected[layer][0])
            assert torch.equal(values, self.expected[layer][1])
        stats = self.cache.stats()
        assert stats.exact_tokens + sum(t.tokens for t in stats.tiers.values()) == self.length * self.rows


CacheMachine.TestCase.settings = settings(
    max_examples=1000, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
test_lossless_interleavings = CacheMachine.TestCase
