"""`CachePasses`: what happens to a cache where a forward pass begins, ends, fails or is interrupted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectralquant.cache.binding import ModelBinding
from spectralquant.cache.budget import fit_into
from spectralquant.cache.groups import CacheGroups
from spectralquant.cache.passes.frames import generate_frame, inside_a_module
from spectralquant.cache.passes.repeated import PromptWatch
from spectralquant.cache.passes.watched import WatchedCache
from spectralquant.cache.policy import TierPolicy
from spectralquant.cache.report.accounting import held_bytes
from spectralquant.cache.tokens.state import CacheState
from spectralquant.errors import InputError, UnsupportedModelError
from spectralquant.surroundings import own_arithmetic


class CachePasses(WatchedCache):
    """The part of a `SpectralCache` that follows a model's forward passes."""

    binding: ModelBinding
    state: CacheState
    groups: CacheGroups
    policy: TierPolicy
    watch: PromptWatch
    options: dict[str, Any]
    in_forward: bool
    reads_views: bool
    over_budget: bool

    def begin_forward(self, batch: int, new: int, device: torch.device) -> None:
        """`new` tokens of `batch` sequences are about to be appended.

        Raises:
            InputError: another number of sequences, or tokens before them were never followed by `end_forward`.
            UnsupportedModelError: a forward pass of a model that nobody watches.
        """
        if self.state.sequences and len(self.state.sequences) != batch:
            raise InputError(
                f"The cache holds {len(self.state.sequences)} sequences, the model runs on {batch}. Use a new cache."
            )
        self.state.require_even()
        self.watch.look(self.state.total)
        if self.binding.pass_of(self) is None and inside_a_module():
            raise UnsupportedModelError(
                "This cache was called by another model object than it was made for, whose forward passes nothing watches, "
                "so nothing would be compressed. Make the cache for the model that runs: SpectralCache(model, profile)."
            )
        if self.in_forward:
            raise InputError(
                "The last tokens given to update were never followed by end_forward(), so nothing would be compressed."
            )
        self.state.keep_as_it_is()
        self.in_forward = True
        self.state.begin(batch, new, device, self.binding.take())
        self.groups.begin_forward()

    @own_arithmetic()
    def end_forward(self) -> None:
        """Compress what has left the window; called when a forward pass has ended."""
        self.in_forward = False
        self.state.forget_kept()
        self.groups.end_forward()
        if self.state.sequences and self.get_seq_length() == self.get_seq_length(len(self.layers) - 1):
            self.groups.after_forward()
            self.groups.rest()
            self.over_budget = fit_into(self.groups, self.policy.max_bytes, self._held_bytes, self.over_budget)
            self.groups.fill_working_set(self.options["working_set"])

    def _held_bytes(self) -> int:
        return held_bytes(self.state, self.groups, self.own_tensors().values())

    def own_tensors(self) -> dict[str, Tensor]:
        """Tensors that a kind of cache holds beyond layers, ids and positions: counted, and kept in snapshots."""
        return {}

    @property
    def reads_spectral(self) -> bool:
        """See `WatchedCache`."""
        return self.options["attention"] == "spectral"

    def abort_forward(self) -> None:
        """Take back what a pass that failed has appended: the cache is as it was before."""
        self.reads_views = False
        if self.in_forward:
            self.in_forward = False
            self.state.restore_kept()
            self.groups.end_forward()

    def begin_pass(self, reads_views: bool) -> None:
        """A forward pass of the model was given this cache (see `PassWatch`). reads_views: through `SpectralAttention`."""
        self.abort_forward()
        self.reads_views = reads_views

    def end_pass(self, output: Any) -> None:
        """That pass has ended with an output, or with an exception (None)."""
        called, self.reads_views = self.in_forward, False
        if output is None:
            self.abort_forward()
            return
        if not called:
            self.report.not_called(type(self.binding.model).__name__)
            return
        new = self.state.last_new
        self.end_forward()
        self.report.note_pass(new, self.get_seq_length(), self.coded_tokens)
        logits = getattr(output, "logits", None)
        every = torch.is_tensor(logits) and logits.dim() == 3 and logits.shape[1] == new
        if self.coded_tokens and every and new == self.get_seq_length() and generate_frame() is None:
            self.report.scored(new)

    def recover(self) -> None:
        """After Ctrl-C: take back what the interrupted pass has appended."""
        if self.in_forward and (interrupted := self.binding.pass_of(self)) is not None and not interrupted.running:
            interrupted.close()
            self.abort_forward()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of each sequence that a layer holds."""
        self.recover()
        return super().get_seq_length(layer_idx)
