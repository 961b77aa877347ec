"""`SpectralCache`: a drop-in transformers cache whose older blocks are compressed.

Sinks (the first 4 tokens) and a recent window stay exact. When a block of 128 tokens has left the window it is coded
into a tier at the end of the forward pass; attention reads hot codes in place and has the rest reconstructed.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectralquant.cache.binding import bind
from spectralquant.cache.compress.compressor import BlockCompressor, CompressionRules
from spectralquant.cache.compress.reconstructor import AsyncReconstructor
from spectralquant.cache.groups import make_groups
from spectralquant.cache.passes.repeated import PromptWatch
from spectralquant.cache.persist.packets import CacheContents, fill_from_packets, pack_cache, pack_tensors
from spectralquant.cache.persist.saved_cache import SavedCache
from spectralquant.cache.policy import make_policy
from spectralquant.cache.pool import SpectralBufferPool
from spectralquant.cache.read.reader import BlockReader
from spectralquant.cache.read.view import LayerView, Reading
from spectralquant.cache.report.accounting import cache_stats
from spectralquant.cache.report.stats import CacheStats, Spent
from spectralquant.cache.report.uncompressed import RunReport
from spectralquant.cache.tiers.base import Tier
from spectralquant.cache.tiers.registry import TierMaker, kernel_backend, usable_tiers
from spectralquant.cache.tokens.group import GroupTokens, narrow_windows
from spectralquant.cache.tokens.held import require_exact_bits
from spectralquant.cache.tokens.layer import SpectralLayer
from spectralquant.cache.tokens.span import GroupSpan
from spectralquant.cache.tokens.state import CacheState
from spectralquant.codec.cold.from_profile import chosen_bound
from spectralquant.codec.hot.linear import INDEX_RANK
from spectralquant.codec.packet import SpectralPacket, packet_float
from spectralquant.errors import InputError, renamed
from spectralquant.geometry import BLOCK
from spectralquant.hooks.wrappers import for_usable_model, model_device
from spectralquant.profile.model import CalibrationProfile
from spectralquant.surroundings import own_arithmetic


class SpectralCache(SavedCache):
    """`model.generate(**inputs, past_key_values=SpectralCache(model, profile))`.

    Args:
        model: any decoder-only model that `sq calibrate` accepts.
        profile: its calibration profile, or None for an exact (lossless, uncompressed) cache.
        tier: hot, warm, cold, exact, or auto: the fastest coded tier that the profile has.
        ages: tier → age in tokens from which blocks move down to it, as `{"cold": 4096}`.
        max_bytes: the oldest blocks move down, tier by tier, until the cache holds no more than this.
        window: tokens that stay exact at least, a multiple of 128; at most 127 more do.
        compress_from: nothing is compressed before the sequence has this many tokens.
        working_set: bytes of decoded warm and cold blocks kept between tokens (0: decode for every token).
        working_tier: "exact" keeps the working set as decoded; "warm" and "hot" keep cold blocks as codes of that tier, which hold
            several times as many in the same bytes and read as that tier does, with its error added.
        background: code blocks during decoding, and what the working set keeps, on a worker thread (None: for the cold tier).
        lag: tokens for which a block in background work stays exact beyond its window; fixed, so that results do not
            depend on the worker's speed.
        attention: "spectral" has the model read this cache through `SpectralAttention`, during passes that are given the
            cache; "model" leaves its implementation alone, which then reads dense tensors (and the cold tier codes
            without importance, at a worse rate).
        kernels: "auto" reads hot codes by Triton kernels on a GPU and by torch elsewhere, "torch" never uses kernels,
            "triton" is an error where they cannot be used. `stats().spent` tells which read what.
        select: a share (0.08) or number of the hot tier's coded tokens that a decode step reads, those that score highest on
            an index of 16 components a head (`spectral_index_decode`); None reads all. Needs kernels.
        pool: pages to share with other caches. host: keep codes in (pinned) host memory.
        step_scale: multiplies the cold tier's step; kept as the float32 that packets carry.
        bound: KL in nats a token that no text is to cost more than: each cold block takes the fewest bytes that keep the
            error which that allows (`sq calibrate --target error=…`). "auto": what the profile was calibrated for, if
            that is an error; None: no bound.
        exact_bits: 16 holds sinks and window in the model's dtype; 8 rounds them to int8 with a float16 scale a vector once
            the pass that brought them has ended, in half the bytes.

    Raises:
        ProfileError: the profile is for another model. InputError: options that contradict each other.
    """

    @for_usable_model
    @own_arithmetic()
    def __init__(
        self,
        model: nn.Module,
        profile: CalibrationProfile | None = None,
        *,
        tier: str = "auto",
        ages: Mapping[str, int] | None = None,
        max_bytes: int | None = None,
        window: int = BLOCK,
        compress_from: int = 0,
        working_set: int = 0,
        working_tier: str = "exact",
        background: bool | None = None,
        lag: int = 32,
        attention: str = "spectral",
        kernels: str = "auto",
        select: float | int | None = None,
        pool: SpectralBufferPool | None = None,
        host: bool = False,
        threads: int = 1,
        step_scale: float = 1.0,
        bound: float | str | None = "auto",
        exact_bits: int = 16,
    ) -> None:
        if window < BLOCK or window % BLOCK:
            raise InputError(f"window={window} must be a positive multiple of the block size, {BLOCK}.")
        if not 0 <= lag <= BLOCK:
            raise InputError(f"lag={lag} is outside 0 to {BLOCK}.")
        if working_tier not in ("exact", "warm", "hot"):
            raise InputError(f"working_tier={working_tier!r} is not one of exact, warm, hot.")
        if working_tier != "exact" and (profile is None or working_tier not in profile.tiers):
            raise InputError(
                f"working_tier={working_tier!r} needs a profile with a {working_tier} tier (sq calibrate --tier all)."
            )
        if attention not in ("spectral", "model"):
            raise InputError(f"attention={attention!r} is not one of spectral, model.")
        step_scale = packet_float(step_scale)
        if profile is not None:
            profile.require_model(model)
        kinds = bind(model).geometry.groups
        available = () if profile is None else usable_tiers(profile, kinds, window, (tier, *(ages or {})))
        policy = make_policy(tier, available, ages, max_bytes)
        require_exact_bits(exact_bits, lossless=policy.first == "exact")
        background = policy.reaches_cold if background is None else background
        self.options = {
            "tier": policy.first,
            "ages": dict(ages or {}),
            "max_bytes": max_bytes,
            "window": window,
            "compress_from": compress_from,
            "working_set": working_set,
            "working_tier": working_tier,
            "background": background,
            "lag": lag,
            "attention": attention,
            "kernels": kernels,
            "select": select,
            "host": host,
            "threads": threads,
            "step_scale": step_scale,
            "bound": chosen_bound(profile, bound),
            "exact_bits": exact_bits,
        }
        self.binding, self.profile, self.policy = bind(model), profile, policy
        self.geometry = self.binding.geometry
        spans = [GroupSpan(kind) for kind in kinds]
        of_layer = {layer: span for span in spans for layer in span.kind.layers}
        own_update = weakref.WeakMethod(self.update)
        super().__init__(
            layers=[SpectralLayer(i, of_layer[i], own_update, exact_bits) for i in range(self.geometry.layers)]
        )
        self.pool = pool or SpectralBufferPool("cpu" if host else model_device(model), pinned=host)
        self.reconstructor = AsyncReconstructor(threads, device=model_device(model))
        backend = kernel_backend(kernels, self.geometry, self.pool.device, select)
        self.spent, self.in_forward, self.reads_views, self.over_budget = Spent(), False, False, False
        groups = [GroupTokens.of(span, self.geometry, self.layers, window) for span in spans]
        self.state = CacheState(self.geometry, self.binding.tables, groups)
        self.watch = PromptWatch()
        self.report = RunReport(policy.first != "exact", window, compress_from, *narrow_windows(groups, exact_bits))
        maker = TierMaker(
            model,
            profile,
            self.geometry,
            self.pool,
            self.reconstructor,
            step_scale,
            self.options["bound"],
            backend,
            0 if select is None else INDEX_RANK,
        )
        kept_as = working_tier if working_set else None
        rules = CompressionRules(policy, window, compress_from, background, lag)
        self.groups = make_groups(self.state, maker, rules, self.reconstructor, self.spent, self.report, kept_as)
        self.state.keep_ids = self.groups.predict
        self.binding.attach(self)
        weakref.finalize(self, self.report.end)

    # What a model calls

    @torch.compiler.disable
    @own_arithmetic()
    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """Append `[B, Hk, T, D]` keys (after RoPE) and values; returns what attention reads.

        That is a `LayerView` for `SpectralAttention`, else dense tensors `[B, Hk, S, D]`.
        """
        batch, _, new, _ = key_states.shape
        if layer_idx == 0:
            self.begin_forward(batch, new, key_states.device)
        heads = self.geometry.heads if self.wants_received else None
        self.layers[layer_idx].append(key_states, value_states, heads)
        view = self.view(layer_idx, new)
        if self.reads_views:
            return view, view
        if heads is not None:
            view.forget_received()
        self.spent.dense_reads += 1
        return view.dense()

    def view(self, layer: int, new: int | None = None) -> LayerView:
        """One layer's tokens: all, or what attention reads when the newest `new` tokens are its queries'."""
        return LayerView(*self.groups.of_layer(layer), self.reading, new)

    @property
    def reading(self) -> Reading:
        """How layers are read."""
        return Reading(self.options["select"], self.options["kernels"], self.wants_received, self.spent)

    @property
    def tiers(self) -> dict[str, Tier]:
        """Tiers of the group of layers that reads furthest back."""
        return self.groups[0].tiers

    @property
    def reader(self) -> BlockReader:
        """Reader of the group of layers that reads furthest back."""
        return self.groups[0].reader

    @property
    def compressor(self) -> BlockCompressor:
        """Compressor of the group of layers that reads furthest back."""
        return self.groups[0].compressor

    @property
    def wants_received(self) -> bool:
        """Whether attention received is counted: the cold tier spends fewer bits on tokens that nobody reads."""
        return self.policy.reaches_cold and self.reads_spectral

    # What generate calls

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest −`tokens_to_remove` tokens; a block that is cut becomes exact again, as it was decoded.

        Sliding layers let go of tokens beyond their window; after `activate_past_recording` they do so here alone.

        Raises:
            InputError: more tokens than there are, or a sliding layer no longer holds what would be read next.
        """
        if tokens_to_remove > 0:
            raise ValueError("crop takes a negative number of tokens to remove")
        self.recover()
        if self.state.sequences and tokens_to_remove:
            self.state.require_croppable(-tokens_to_remove)
            self.groups.forget_pending()
            target = self.get_seq_length() + tokens_to_remove
            self.state.truncate(target, [group.reader.whole for group in self.groups])
        self.groups.forget_unread()

    def activate_past_recording(self) -> None:
        """Hold what sliding layers no longer read until the next `crop`, so that tokens can be taken back."""
        for group in self.state.groups:
            group.span.recording = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take sequences `beam_idx: [B]`; blocks are shared, not copied."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep sequences `indices` (integers or a boolean mask), in that order."""
        indices = torch.as_tensor(indices)
        if indices.dtype == torch.bool:
            indices = indices.nonzero().squeeze(1)
        self.recover()
        if self.state.sequences:
            self.groups.settle()
            self.state.select_sequences(indices)
            self.groups.forget_unused()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        self.batch_select_indices(torch.arange(len(self.state.sequences)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything; pages go back to the pool."""
        self.in_forward = False
        self.groups.forget_pending()
        self.state.clear()
        self.groups.end_forward()
        self.groups.forget_unused()
        self.report.restart()

    @property
    def coded_tokens(self) -> int:
        """Tokens of each sequence in coded blocks, of the layers that read furthest back."""
        return self.state.coded_tokens

    @property
    def batch_size(self) -> int:
        return len(self.state.sequences)

    def demote(self, blocks: int = 1) -> int:
        """Move the oldest `blocks` blocks that can go lower one tier down; returns how many moved."""
        self.recover()
        return self.groups.demote(blocks)

    def evict(self, blocks: int = 1) -> int:
        """Deprecated name of `demote`: no token is lost."""
        renamed("SpectralCache.evict", "demote")
        return self.demote(blocks)

    # Packets (for copies and files see `SavedCache`)

    def pack(self, *, exact: str = "auto") -> list[SpectralPacket]:
        """One self-describing packet a sequence: coded blocks cold, sinks and window exact (see `pack_prompt`).

        With `exact_bits=8`, "auto" is int8.
        """
        self.recover()
        self.groups.settle()
        self.report.kept = True
        rounded = exact == "auto" and self.options["exact_bits"] == 8
        return pack_cache(self.contents, "int8" if rounded else exact)

    def compress(self, keys: Tensor, values: Tensor | None = None, token_ids: Tensor | None = None) -> SpectralPacket:
        """A packet of one tensor `keys: [L, Hk, T, D]` (after RoPE at positions 0 … T − 1), with values where given.

        Nothing is added to the cache; `unpack` gives keys (and values, else the profile's mean) back. `token_ids: [T]`
        are needed where the profile predicts from them.
        """
        return pack_tensors(self.contents, keys, values, token_ids)

    @property
    def contents(self) -> CacheContents:
        """What packets are made from and become."""
        return CacheContents(self.state, self.groups, self.profile, self.options["step_scale"])

    @classmethod
    def unpack(
        cls,
        model: nn.Module,
        profile: CalibrationProfile | None,
        packets: SpectralPacket | bytes | str | Path | Sequence[SpectralPacket | bytes | str | Path],
        **options: Any,
    ) -> SpectralCache:
        """A cache from packets (of equal length), their files or their bytes; blocks stay packed and are decoded when read."""
        several = list(packets) if isinstance(packets, (list, tuple)) else [packets]
        several = [SpectralPacket(p) if isinstance(p, (bytes, memoryview)) else p for p in several]
        options.setdefault("tier", "cold" if profile is not None and "cold" in profile.tiers else "auto")
        cache = cls(model, profile, **options)
        heads = cache.geometry.heads if cache.wants_received else None
        fill_from_packets(cache.contents, cache.binding.model, heads, several)
        cache.report.note_held(cache.state.total, cache.state.coded_tokens)
        return cache

    def stats(self) -> CacheStats:
        """What the cache holds now, measured, what it has spent, and what it did not compress.

        Warns (`NotCompressedWarning`, once a cache and reason) where it did not compress what it was asked to.
        """
        self.recover()
        self.report.end()
        return cache_stats(
            self.state,
            self.groups,
            self.pool,
            self.own_tensors().values(),
            spent=self.spent,
            failure=self.reconstructor.failure,
            over_budget=self.over_budget,
            not_compressed=self.report.reasons(),
        )
