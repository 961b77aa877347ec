"""A cache's sequences as packets, and packets as a cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spectralquant.cache.lazy import LazyLoader
from spectralquant.cache.packet_layout import require_blocks, require_room
from spectralquant.cache.positions import TokenPositions
from spectralquant.cache.prompt import DTYPE_NAMES, RUN_BLOCKS, require_packet
from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock
from spectralquant.cache.tiers.cold import payload_bytes
from spectralquant.codec.adaptive import AdaptiveRankCompressor
from spectralquant.codec.block import BLOCK, SINKS, KVBlock
from spectralquant.codec.packet import CODED, EXACT, EXACT_DTYPES, PacketHeader, SpectralPacket, exact_section
from spectralquant.errors import InputError, PacketError
from spectralquant.sources.fit import require_positions

if TYPE_CHECKING:
    from spectralquant.cache.spectral_cache import SpectralCache

EXACT_TOKENS = 16_384


def pack_cache(cache: SpectralCache, exact: str) -> list[SpectralPacket]:
    """See `SpectralCache.pack`. Hot and warm blocks are coded again as cold ones; without a cold tier they are kept as
    decoded, in the dtype of the exact sections.

    Raises:
        InputError: an empty cache, an unknown `exact`, or padded sequences.
    """
    exact = DTYPE_NAMES[cache.layers[0].dtype] if exact == "auto" and cache.state.rows else exact
    if not cache.state.rows or not cache.get_seq_length():
        raise InputError("The cache is empty; run the model on a prompt first.")
    if exact not in EXACT_DTYPES:
        raise InputError(f"exact={exact!r} is not one of auto, {', '.join(EXACT_DTYPES)}.")
    state = cache.state
    if not state.positions.numbered:
        raise InputError(
            "Packets number tokens from 0, but this cache has padding or positions of its own. Pack each prompt without "
            "padding, or keep the cache with cache.save(path)."
        )
    return [_pack_row(cache, row, exact) for row in range(len(state.rows))]


def _pack_row(cache: SpectralCache, row: int, exact: str) -> SpectralPacket:
    state, g = cache.state, cache.geometry
    sections: list[tuple[int, int, int, bytes]] = []

    def add_exact(start: int, keys: Tensor, values: Tensor) -> None:
        for at in range(0, keys.shape[2], EXACT_TOKENS):
            part = slice(at, at + EXACT_TOKENS)
            body = exact_section(keys[:, :, part], values[:, :, part], exact)
            sections.append((start + at, min(EXACT_TOKENS, keys.shape[2] - at), EXACT, body))

    sinks = [
        torch.stack([getattr(layer, name)[row] for layer in state.layers]) for name in ("sink_keys", "sink_values")
    ]
    add_exact(0, *sinks)
    agreed = _as_one_prompt(cache)
    for block in state.rows[row]:
        cold = "cold" in cache.tiers and (block.tier == "cold" or state.cold_ready(block.start, block.stop))
        if not cold or not bool(agreed[block.start : block.stop].all()):
            add_exact(block.start, *(x.to(cache.layers[0].dtype) for x in cache.reader.whole(row, block)))
            continue
        sections.append((block.start, block.tokens, CODED, _cold_bytes(cache, row, block)))
    recent = [torch.stack([getattr(layer, name)[row] for layer in state.layers]) for name in ("keys", "values")]
    add_exact(state.coded_stop, *recent)
    header = PacketHeader(
        g.layers,
        g.kv_heads,
        g.head_dim,
        state.total,
        BLOCK,
        sinks[0].shape[2],
        exact,
        cache.options["step_scale"],
        bytes(16) if cache.profile is None else cache.profile.id,
    )
    return SpectralPacket.build(header, sections)


def _as_one_prompt(cache: SpectralCache) -> Tensor:
    """Which tokens bool `[T]` were rotated as a prompt of this length read in one pass is, as a packet's reader does it.

    A dynamic model (longrope, dynamic NTK) rotates with other frequencies once the sequence is longer; tokens from before
    stay exact in a packet, and that is said.
    """
    total, which = cache.state.total, cache.state.positions.which
    if which is None:
        return torch.ones(total, dtype=torch.bool)
    wanted = cache.binding.tables.frequencies_of_prompt(total)
    same = torch.tensor([torch.equal(held, wanted) for held in cache.state.positions.frequencies])
    agreed = same[which.long()]
    coded = sum(b.tokens for b in cache.state.rows[0] if not bool(agreed[b.start : b.stop].all()))
    if coded:
        warnings.warn(
            f"{coded:,} of {cache.state.coded_tokens:,} coded tokens stay exact in the packet: the model rotated their keys "
            f"with other frequencies than those of a prompt of {total:,} tokens (longrope or dynamic NTK, read in several "
            "passes). Read the prompt in one pass, or use pack_prompt, for a smaller packet.",
            stacklevel=4,
        )
    return agreed


def pack_tensors(cache: SpectralCache, keys: Tensor, values: Tensor | None, token_ids: Tensor | None) -> SpectralPacket:
    """See `SpectralCache.compress`.

    Raises:
        InputError: no cold tier, no token ids though the profile predicts from them, or another model's shape.
    """
    g = cache.geometry
    if "cold" not in cache.tiers:
        raise InputError("compress needs a profile with a cold tier (sq calibrate --tier cold or all).")
    shape = (g.layers, g.kv_heads, keys.shape[2] if keys.dim() == 4 else 0, g.head_dim)
    if not shape[2] or any(x is not None and tuple(x.shape) != shape for x in (keys, values)):
        raise InputError(
            f"compress takes keys (and values) [L, Hk, T, D] = [{g.layers}, {g.kv_heads}, T, {g.head_dim}] with T of at "
            f"least 1, not {tuple(keys.shape)}."
        )
    codec = cache.tiers["cold"].codec
    codec = getattr(codec, "base", codec)
    if codec.features is not None and (token_ids is None or len(token_ids) != shape[2]):
        raise InputError(
            f"This profile predicts from token ids: pass token_ids of the {shape[2]} tokens, or calibrate with "
            "--predict none."
        )
    if values is None:
        mean = codec.projectors[1].mean.view(g.layers, g.kv_heads, 1, g.head_dim)
        values = mean.expand(shape).to(keys)
    exact = DTYPE_NAMES.get(keys.dtype, "float32")
    total, sections = shape[2], []
    head = min(SINKS, total)
    sections.append((0, head, EXACT, exact_section(keys[:, :, :head], values[:, :, :head], exact)))
    starts = [head, *range(BLOCK, total, BLOCK)] if total > head else []
    places = cache.binding.tables.prompt(total)

    def block_at(start: int) -> KVBlock:
        stop = min(total, (start // BLOCK + 1) * BLOCK)
        rotations = cache.binding.tables(places.part(slice(start, stop)))
        seen = (None, -1) if token_ids is None else (token_ids[start:stop], int(token_ids[start - 1]))
        return LeavingBlock(keys[:, :, start:stop], values[:, :, start:stop], start, rotations, None, *seen).plain()

    for done in range(0, len(starts), RUN_BLOCKS):
        blocks = [block_at(start) for start in starts[done : done + RUN_BLOCKS]]
        coded = codec.encode_run(blocks)
        sections += [(b.start, b.tokens, CODED, data) for b, data in zip(blocks, coded, strict=True)]
    header = PacketHeader(
        g.layers, g.kv_heads, g.head_dim, total, BLOCK, head, exact, codec.step_scale, cache.profile.id
    )
    return SpectralPacket.build(header, sections)


def _cold_bytes(cache: SpectralCache, row: int, block: StoredBlock) -> bytes:
    """A block as a packet holds it: as it is, or coded again where only this cache could read it."""
    tier = cache.tiers["cold"]
    adaptive = isinstance(tier.codec, AdaptiveRankCompressor)
    if block.tier == "cold" and not (adaptive and tier.codec.is_enhanced(payload_bytes(block))):
        return tier.to_bytes(block)
    codec = tier.codec.base if adaptive else tier.codec
    return codec.encode(cache.compressor.decoded(row, block).plain())


def fill_from_packets(cache: SpectralCache, sources: Sequence[SpectralPacket | str | Path]) -> None:
    """See `SpectralCache.unpack`.

    Raises:
        PacketError: another profile's packet, packets of different shapes, or one that no cache wrote.
        InputError: more tokens than the model has positions.
    """
    loaders = [LazyLoader(source) for source in sources]
    for loader in loaders:
        _require(cache, loader.packet)
    shapes = {tuple((s.start, s.tokens, s.kind) for s in loader.packet.sections) for loader in loaders}
    if len(shapes) != 1:
        raise PacketError("Packets of one batch must have the same number of tokens. Unpack them one by one.")
    rows = [_row(cache, loader) for loader in loaders]
    state, dtype, device = cache.state, cache.binding.model.dtype, cache.binding.device
    state.rows = [blocks for _, blocks, _ in rows]
    state.coded_tokens = sum(b.tokens for b in state.rows[0])
    heads = cache.geometry.heads if cache.wants_received else None
    for index, layer in enumerate(state.layers):
        sinks, recent = (
            [torch.stack([row[part][i][index] for row in rows]).to(device, dtype) for i in range(2)] for part in (0, 2)
        )
        layer.append(*recent, heads)
        layer.sink_keys, layer.sink_values = sinks
        if layer.received is not None:
            layer.received.fill_(float("nan"))
    cache.report.note_held(state.total, state.coded_tokens)
    places = cache.binding.tables.prompt(state.total)
    if places.frequencies is not None:
        state.positions = TokenPositions(None, list(places.frequencies), places.which.to(torch.int32))
    if state.keep_ids:
        state.ids = torch.full((len(rows), state.total), -1, dtype=torch.int32, device=device)


def _require(cache: SpectralCache, packet: SpectralPacket) -> None:
    h, g = packet.header, cache.geometry
    if (h.layers, h.kv_heads, h.head_dim) != (g.layers, g.kv_heads, g.head_dim):
        raise PacketError(
            f"The packet is of {h.layers} layers × {h.kv_heads} KV heads × {h.head_dim}, this model has {g.layers} × "
            f"{g.kv_heads} × {g.head_dim}. Use the model that packed it."
        )
    require_positions(cache.binding.model, h.tokens, "The packet", "It belongs to another model.")
    require_blocks(packet)
    if packet.coded_tokens and "cold" in cache.tiers:
        require_room(packet, cache.tiers["cold"].codec)
    if cache.profile is not None:
        require_packet(cache.profile, packet)
        if packet.coded_tokens and packet.header.step_scale != cache.options["step_scale"]:
            raise PacketError(
                f"The packet was coded with step_scale={packet.header.step_scale:g}, the cache uses "
                f"{cache.options['step_scale']:g}. Pass step_scale={packet.header.step_scale:g}."
            )
    elif packet.coded_tokens:
        raise PacketError("The packet holds coded blocks; unpacking it needs the profile that packed it.")


def _row(cache: SpectralCache, loader: LazyLoader):
    """Sinks, blocks and recent tokens (pairs `[L, Hk, T, D]`) of one packet."""
    sections = loader.packet.sections
    coded = [i for i, s in enumerate(sections) if s.kind == CODED]
    last = coded[-1] if coded else -1
    g = cache.geometry
    nothing = torch.zeros(g.layers, g.kv_heads, 0, g.head_dim)
    sinks, recent = (nothing, nothing), [(nothing, nothing)]
    blocks: list[StoredBlock] = []
    for index, section in enumerate(sections):
        if section.kind == CODED:
            blocks.append(StoredBlock("cold", section.start, section.tokens, loader.section(index), section.length))
        elif index > last:
            recent.append(loader.packet.exact(section))
        elif index == 0:
            sinks = loader.packet.exact(section)
        else:
            keys, values = loader.packet.exact(section)
            blocks.append(cache.tiers["exact"].encode(LeavingBlock(keys, values, section.start, ())))
    return sinks, blocks, tuple(torch.cat([pair[i] for pair in recent], dim=2) for i in range(2))
