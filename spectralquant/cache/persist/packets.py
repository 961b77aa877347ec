"""A cache's sequences as packets, and packets as a cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spectralquant.cache.groups import CacheGroup, CacheGroups
from spectralquant.cache.persist.lazy import LazyLoader
from spectralquant.cache.persist.packet_layout import require_blocks, require_room
from spectralquant.cache.persist.prompt import DTYPE_NAMES, RUN_BLOCKS, require_packet
from spectralquant.cache.tiers.base import LeavingBlock, StoredBlock
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.positions import TokenPositions
from spectralquant.cache.tokens.state import CacheState
from spectralquant.codec.block import KVBlock
from spectralquant.codec.packet import CODED, EXACT_DTYPES, PacketHeader, Sections, SpectralPacket, exact_sections
from spectralquant.errors import InputError, PacketError
from spectralquant.geometry import BLOCK, SINKS
from spectralquant.hooks.wrappers import model_device
from spectralquant.models.limits import require_positions
from spectralquant.profile.model import CalibrationProfile
from spectralquant.surroundings import own_arithmetic

LAYER_PARTS = ("sink_keys", "sink_values", "keys", "values")


@dataclass(frozen=True)
class CacheContents:
    """What of a cache packets are made from and become: its tokens, their tiers, and the profile and step of its codes."""

    state: CacheState
    groups: CacheGroups
    profile: CalibrationProfile | None
    step_scale: float


@own_arithmetic()
def pack_cache(cache: CacheContents, exact: str) -> list[SpectralPacket]:
    """See `SpectralCache.pack`. Hot and warm blocks are coded again as cold ones; without a cold tier they are kept as
    decoded, in the dtype of the exact sections.

    Raises:
        InputError: an empty cache, an unknown `exact`, or padded sequences.
    """
    state = cache.state
    exact = DTYPE_NAMES[state.groups[0].layers[0].dtype] if exact == "auto" and state.sequences else exact
    if not state.sequences or not state.total:
        raise InputError("The cache is empty; run the model on a prompt first.")
    if exact not in EXACT_DTYPES:
        raise InputError(f"exact={exact!r} is not one of auto, {', '.join(EXACT_DTYPES)}.")
    if not state.positions.numbered:
        raise InputError(
            "Packets number tokens from 0, but this cache has padding or positions of its own. Pack each prompt without "
            "padding, or keep the cache with cache.save(path)."
        )
    return [_pack_row(cache, row, exact) for row in range(len(state.sequences))]


def _pack_row(cache: CacheContents, row: int, exact: str) -> SpectralPacket:
    g = cache.state.geometry
    header = PacketHeader(
        g.layers,
        g.kv_heads,
        g.head_dim,
        cache.state.total,
        BLOCK,
        max(group.tokens.layers[0].sink_keys.shape[2] for group in cache.groups),
        exact,
        cache.step_scale,
        bytes(16) if cache.profile is None else cache.profile.id,
        g.groups if any(g.windows) else (),
    )
    agreed = _as_one_prompt(cache.state)
    return SpectralPacket.build(
        header, *(_group_sections(cache.state, group, row, exact, agreed) for group in cache.groups)
    )


def _group_sections(state: CacheState, group: CacheGroup, row: int, exact: str, agreed: Tensor) -> Sections:
    """Sections of what one sequence holds in one group of layers; a block is coded where `agreed` (see below) allows it."""
    tokens = group.tokens
    parts = [torch.stack([getattr(layer, n)[row] for layer in tokens.layers]) for n in LAYER_PARTS]
    sections = exact_sections(0, parts[0], parts[1], exact)
    for block in tokens.sequences[row]:
        data = _cold_bytes(state, group, row, block) if bool(agreed[block.start : block.stop].all()) else None
        if data is not None:
            sections.append((block.start, block.tokens, CODED, data))
            continue
        both = (x.to(tokens.layers[0].dtype) for x in group.reader.whole(row, block))
        sections += exact_sections(block.start, *both, exact)
    return sections + exact_sections(tokens.recent_from, parts[2], parts[3], exact)


def _as_one_prompt(state: CacheState) -> Tensor:
    """Which tokens bool `[T]` were rotated as a prompt of this length read in one pass is, as a packet's reader does it.

    A dynamic model (longrope, dynamic NTK) rotates with other frequencies once the sequence is longer; tokens from before
    stay exact in a packet, and that is said.
    """
    total, which = state.total, state.positions.which
    if which is None:
        return torch.ones(total, dtype=torch.bool)
    wanted = state.rotary.frequencies_of_prompt(total)
    same = torch.tensor([torch.equal(used, wanted) for used in state.positions.frequencies])
    agreed = same[which.long()]
    coded = sum(b.tokens for b in state.sequences[0] if not bool(agreed[b.start : b.stop].all()))
    if coded:
        warnings.warn(
            f"{coded:,} of {state.coded_tokens:,} coded tokens stay exact in the packet: the model rotated their keys "
            f"with other frequencies than those of a prompt of {total:,} tokens (longrope or dynamic NTK, read in several "
            "passes). Read the prompt in one pass, or use pack_prompt, for a smaller packet.",
            stacklevel=4,
        )
    return agreed


@own_arithmetic()
def pack_tensors(cache: CacheContents, keys: Tensor, values: Tensor | None, token_ids: Tensor | None) -> SpectralPacket:
    """See `SpectralCache.compress`.

    Raises:
        InputError: no cold tier, no token ids though the profile predicts from them, or another model's shape.
    """
    g = cache.state.geometry
    if "cold" not in cache.groups[0].tiers:
        raise InputError("compress needs a profile with a cold tier (sq calibrate --tier cold or all).")
    shape = (g.layers, g.kv_heads, keys.shape[2] if keys.dim() == 4 else 0, g.head_dim)
    if not shape[2] or any(x is not None and tuple(x.shape) != shape for x in (keys, values)):
        raise InputError(
            f"compress takes keys (and values) [L, Hk, T, D] = [{g.layers}, {g.kv_heads}, T, {g.head_dim}] with T of at "
            f"least 1, not {tuple(keys.shape)}."
        )
    if cache.state.keep_ids and (token_ids is None or len(token_ids) != shape[2]):
        raise InputError(
            f"This profile predicts from token ids: pass token_ids of the {shape[2]} tokens, or calibrate with "
            "--predict none."
        )
    exact = DTYPE_NAMES.get(keys.dtype, "float32")
    parts = []
    for group in cache.groups:
        layers = list(group.tokens.kind.layers)
        own = None if values is None else values[layers]
        parts.append(_tensor_sections(cache.state, group, keys[layers], own, token_ids, exact))
    scale, groups = cache.step_scale, g.groups if any(g.windows) else ()
    header = PacketHeader(
        g.layers, g.kv_heads, g.head_dim, shape[2], BLOCK, min(SINKS, shape[2]), exact, scale, cache.profile.id, groups
    )
    return SpectralPacket.build(header, *parts)


def _tensor_sections(
    state: CacheState, group: CacheGroup, keys: Tensor, values: Tensor | None, token_ids: Tensor | None, exact: str
) -> Sections:
    """Sections of one group's layers: sinks exact and the rest coded; of sliding layers what can still be read."""
    kind, g, total = group.tokens.kind, group.tokens.geometry, keys.shape[2]
    first = kind.first_read(total)
    if "cold" not in group.tiers:
        if values is None:
            raise InputError(
                f"The profile has no mean values of layer {kind.layers[0]}, whose window of {kind.window} tokens stays exact: "
                "pass values too."
            )
        return exact_sections(first, keys[:, :, first:], values[:, :, first:], exact)
    codec = group.tiers["cold"].codec
    codec = getattr(codec, "base", codec)
    if values is None:
        mean = codec.projectors[1].mean.view(g.layers, g.kv_heads, 1, g.head_dim)
        values = mean.expand(g.layers, g.kv_heads, total, g.head_dim).to(keys)
    start = first // BLOCK * BLOCK
    head = 0 if start else min(SINKS, total)
    places = state.rotary.prompt(total)

    def block_at(at: int) -> KVBlock:
        stop = min(total, (at // BLOCK + 1) * BLOCK)
        rotations = state.tables(kind, places.part(slice(at, stop)))
        seen = (None, -1) if token_ids is None else (token_ids[at:stop], int(token_ids[at - 1]))
        return LeavingBlock(keys[:, :, at:stop], values[:, :, at:stop], at, rotations, None, *seen).plain()

    sections = exact_sections(0, keys[:, :, :head], values[:, :, :head], exact)
    begin = max(start, head)
    starts = [begin, *range((begin // BLOCK + 1) * BLOCK, total, BLOCK)] if begin < total else []
    for done in range(0, len(starts), RUN_BLOCKS):
        blocks = [block_at(at) for at in starts[done : done + RUN_BLOCKS]]
        coded = codec.encode_run(blocks)
        sections += [(b.start, b.tokens, CODED, data) for b, data in zip(blocks, coded, strict=True)]
    return sections


def _cold_bytes(state: CacheState, group: CacheGroup, row: int, block: StoredBlock) -> bytes | None:
    """A block as a packet holds it: as it is, or coded again where it is not cold; None: not at all."""
    tier = group.tiers.get("cold")
    if tier is None:
        return None
    if block.tier == "cold":
        return tier.to_bytes(block)
    decoded: LeavingBlock | None = group.compressor.decoded(row, block)
    if not state.cold_ready(block.start, block.stop):
        decoded = tier.with_ids(decoded)
    return None if decoded is None else tier.codec.encode(decoded.plain())


@own_arithmetic()
def fill_from_packets(
    cache: CacheContents, model: nn.Module, heads: int | None, sources: Sequence[SpectralPacket | str | Path]
) -> None:
    """See `SpectralCache.unpack`. heads: for counting received attention (see `SpectralLayer.append`).

    Raises:
        PacketError: another profile's packet, packets of different shapes, or one that no cache wrote.
        InputError: more tokens than the model has positions.
    """
    loaders = [LazyLoader(source) for source in sources]
    for loader in loaders:
        _require(cache, model, loader.packet)
    shapes = {tuple((s.start, s.tokens, s.kind, s.group) for s in loader.packet.sections) for loader in loaders}
    if len(shapes) != 1:
        raise PacketError("Packets of one batch must have the same number of tokens. Unpack them one by one.")
    for group in cache.groups:
        _fill_group(group.tokens, model, heads, [_row(cache.groups, group, loader) for loader in loaders])
    state = cache.state
    places = state.rotary.prompt(state.total)
    if places.frequencies is not None:
        state.positions = TokenPositions(None, list(places.frequencies), places.which.to(torch.int32))
    if state.keep_ids:
        shape = (len(loaders), state.total)
        state.ids = torch.full(shape, -1, dtype=torch.int32, device=model_device(model))


def _fill_group(tokens: GroupTokens, model: nn.Module, heads: int | None, rows: list[PacketGroup]) -> None:
    """Put what packets hold of one group's layers into the cache; a packet may hold more than can still be read."""
    dtype, device = model.dtype, model_device(model)
    tokens.sequences = [row.blocks for row in rows]
    tokens.span.first, tokens.span.recent_from = rows[0].first, rows[0].recent_from
    for index, layer in enumerate(tokens.layers):
        sinks, recent = (
            [torch.stack([getattr(row, part)[i][index] for row in rows]).to(device, dtype) for i in range(2)]
            for part in ("sinks", "recent")
        )
        layer.append(*recent, heads)
        layer.sink_keys, layer.sink_values = sinks
        if layer.received is not None:
            layer.received.fill_(float("nan"))
    tokens.rest()
    tokens.forget_unread()


def _require(cache: CacheContents, model: nn.Module, packet: SpectralPacket) -> None:
    h, g = packet.header, cache.state.geometry
    if (h.layers, h.kv_heads, h.head_dim) != (g.layers, g.kv_heads, g.head_dim):
        raise PacketError(
            f"The packet is of {h.layers} layers × {h.kv_heads} KV heads × {h.head_dim}, this model has {g.layers} × "
            f"{g.kv_heads} × {g.head_dim}. Use the model that packed it."
        )
    if h.groups and h.groups != g.groups:
        raise PacketError("The packet's layers read other windows than this model's. Use the model that packed it.")
    require_positions(model, h.tokens, "The packet", "It belongs to another model.")
    require_blocks(packet)
    for number, group in enumerate(cache.groups[: len(h.all_groups)]):
        if "cold" in group.tiers:
            require_room(packet, number, group.tiers["cold"].codec)
    if cache.profile is not None:
        require_packet(cache.profile, packet)
        if packet.coded_tokens and packet.header.step_scale != cache.step_scale:
            raise PacketError(
                f"The packet was coded with step_scale={packet.header.step_scale:g}, the cache uses "
                f"{cache.step_scale:g}. Pass step_scale={packet.header.step_scale:g}."
            )
    elif packet.coded_tokens:
        raise PacketError("The packet holds coded blocks; unpacking it needs the profile that packed it.")


@dataclass
class PacketGroup:
    """What one packet holds of a group: sinks and recent tokens (pairs `[L, Hk, T, D]`) and the blocks between them."""

    sinks: tuple[Tensor, Tensor]
    blocks: list[StoredBlock]
    recent: tuple[Tensor, ...]
    first: int
    recent_from: int


def _row(groups: CacheGroups, group: CacheGroup, loader: LazyLoader) -> PacketGroup:
    """One packet's part of a group. A packet of one group serves every group, as far as it is exact."""
    packet, kind, g = loader.packet, group.tokens.kind, group.tokens.geometry
    split = not packet.header.groups and len(groups) > 1
    number = 0 if split else groups.index(group)
    of_group = [(i, s) for i, s in enumerate(packet.sections) if s.group == number]
    coded = [at for at, (_, s) in enumerate(of_group) if s.kind == CODED]
    if coded and (split or not group.tokens.coded):
        raise PacketError(
            "The packet holds blocks coded over layers that this cache keeps apart (an older packet, or another window). "
            "Read it with spectralquant.unpack_cache, or pack the prompt again."
        )
    last = coded[-1] if coded else -1
    nothing = torch.zeros(g.layers, g.kv_heads, 0, g.head_dim, dtype=torch.float32)
    content = PacketGroup((nothing, nothing), [], (nothing, nothing), of_group[0][1].start if of_group else 0, 0)
    recent = [(nothing, nothing)]
    for at, (index, section) in enumerate(of_group):
        if section.kind == CODED:
            stored = StoredBlock("cold", section.start, section.tokens, loader.section(index), section.length)
            content.blocks.append(stored)
            continue
        both = packet.exact(section)
        both = tuple(x[list(kind.layers)] for x in both) if split else both
        if at > last:
            recent.append(both)
        elif at == 0 and section.start == 0:
            content.sinks = both
        else:
            content.blocks.append(group.tiers["exact"].encode(LeavingBlock(*both, section.start, ())))
    content.recent = tuple(torch.cat([pair[i] for pair in recent], dim=2) for i in range(2))
    content.recent_from = packet.header.tokens - content.recent[0].shape[2]
    return content
