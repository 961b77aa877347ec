"""A prompt's KV cache to a packet and back.

`pack_prompt` runs the prefill once, exactly, and encodes every token between the sinks and the recent window.
`unpack_cache` decodes a packet into a `transformers` cache that `generate` continues from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from spectralquant.cache.binding import bind
from spectralquant.cache.passes.repeated import UnpackedCache
from spectralquant.cache.persist.likeness import warn_of_unlike_text
from spectralquant.cache.persist.packet_layout import require_room
from spectralquant.cache.persist.unpacking import Unpacking
from spectralquant.cache.tiers.base import LeavingBlock
from spectralquant.cache.tiers.cold_encode import encode_cold
from spectralquant.codec.cold.from_profile import chosen_bound, cold_codec
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.packet import (
    CODED,
    EXACT_DTYPES,
    PacketHeader,
    SpectralPacket,
    exact_sections,
    packet_float,
)
from spectralquant.errors import InputError, PacketError, renamed
from spectralquant.geometry import BLOCK, SINKS, LayerGroup
from spectralquant.hooks.causal import causal_attention
from spectralquant.hooks.observe import attention_received
from spectralquant.hooks.received import attend_and_receive
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device, runs_model
from spectralquant.models.forward import with_cache
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.models.load import LoadedModel
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.rotary import Rotation
from spectralquant.streams import finish_here

Progress = Callable[[int, int], None]
StageProgress = Callable[[str, int, int], None]
RUN_BLOCKS, RUN_BLOCKS_GPU = 16, 64
DTYPE_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


def profile_codecs(
    model: nn.Module,
    profile: CalibrationProfile,
    groups: Sequence[LayerGroup],
    *,
    step_scale: float = 1.0,
    adaptive_tables: bool = False,
    bound: float | str | None = "auto",
) -> list[SpectralCodec]:
    """The cold-tier codec of a profile for each group of a model's layers.

    Raises:
        ProfileError: the profile belongs to another model, has no cold tier, or one that mixes layers of several groups.
        InputError: a step scale that a packet cannot carry.
    """
    profile.require_model(model)
    embedding, device = embedding_weight(model), model_device(model)
    scale, geometry = packet_float(step_scale), bind(model).geometry
    options = {"step_scale": scale, "adaptive_tables": adaptive_tables, "bound": chosen_bound(profile, bound)}
    out, before = [], len(profile.codecs)
    for layers, tier in profile.parts("cold", groups).items():
        key = ("cold, adaptive" if adaptive_tables else "cold", layers, str(device), scale, options["bound"])
        if key not in profile.codecs:
            profile.codecs[key] = cold_codec(profile, tier, layers, geometry.part(layers), embedding, device, **options)
        out.append(profile.codecs[key])
    if len(profile.codecs) > before:
        finish_here(device)  # codecs are shared, and may be used on other streams
    return out


@torch.no_grad()
@runs_model
def pack_prompt(
    model: nn.Module,
    profile: CalibrationProfile,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    exact: str = "auto",
    step_scale: float = 1.0,
    adaptive_tables: bool = False,
    adaptive: bool | None = None,
    bound: float | str | None = "auto",
    progress: StageProgress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> list[SpectralPacket]:
    """Packets, one a sequence, of prompts `input_ids: [B, T]`; padding (left or right, by `attention_mask`) is left out.

    The first 4 and the last 128 to 255 tokens of each are exact: in the model's dtype (`auto`), or `int8`. Of layers with a
    sliding window only tokens that can still be read are in a packet, and all exact where that are no more than 255.
    With `adaptive_tables` each block may shift its tables, which saves bytes on text unlike the calibration's (`adaptive` is
    its deprecated name). bound: see `SpectralCache`.
    `kept` keeps the coded blocks of a run that is interrupted.

    Raises:
        InputError: an empty prompt, one beyond the model's last position, or an unknown `exact`.
    """
    if adaptive is not None:
        renamed("adaptive", "adaptive_tables", wrappers=2)
        adaptive_tables = adaptive
    exact = DTYPE_NAMES[model.dtype] if exact == "auto" else exact
    if exact not in EXACT_DTYPES:
        raise InputError(f"exact={exact!r} is not one of auto, {', '.join(EXACT_DTYPES)}.")
    coded = [group for group in bind(model).geometry.groups if group.reads_beyond(2 * BLOCK)]
    codecs = profile_codecs(model, profile, coded, step_scale=step_scale, adaptive_tables=adaptive_tables, bound=bound)
    by_group = dict(zip(coded, codecs, strict=True))
    packets = []
    for row, ids in enumerate(input_ids):
        if attention_mask is not None:
            ids = ids[attention_mask[row].bool()]
        if len(ids) == 0:
            raise InputError("A prompt is empty; at least one token is needed.")
        require_known_ids(model, ids)
        require_positions(model, len(ids), "The prompt", "Shorten it (sq pack --max-tokens).")
        packets.append(_pack_one(model, profile, by_group, ids, exact, packet_float(step_scale), progress, kept, row))
        warn_of_unlike_text(packets[-1], profile)
    return packets


def _pack_one(
    model: nn.Module,
    profile: CalibrationProfile,
    codecs: Mapping[LayerGroup, SpectralCodec],
    ids: Tensor,
    exact: str,
    step_scale: float,
    progress: StageProgress,
    kept: Kept,
    row: int,
) -> SpectralPacket:
    binding = bind(model)
    geometry, total = binding.geometry, len(ids)
    seen: list[tuple[Tensor, Tensor, Tensor, Rotation | None]] = []

    def observe(call: AttentionCall) -> Tensor | None:
        if call.shared:
            return None
        progress("reading the prompt", len(seen), geometry.layers)
        rotation = call.rotation(geometry.layout) if geometry.rotary[call.layer] else None
        output, received = _attended(call)
        seen.append((call.key[0], call.value[0], received, rotation))
        return output

    binding.tables.forget_lengths()
    with AttentionTap(model, observe):
        model(input_ids=ids[None].to(model_device(model)), use_cache=False, logits_to_keep=1)
    work = {group: coded_blocks(group, total) if group in codecs else [] for group in geometry.groups}
    steps, done = sum(map(len, work.values())), 0
    parts: list[list[tuple[int, int, int, bytes]]] = []
    for group, ranges in work.items():
        of_group = [seen[layer] for layer in group.layers]
        keys, values, received = (torch.stack([layer[i] for layer in of_group]) for i in range(3))
        first = ranges[0][0] if ranges else total
        last = ranges[-1][1] if ranges else group.first_read(total)
        head = first if first == SINKS else 0
        sections = exact_sections(0, keys[:, :, :head], values[:, :, :head], exact)
        received = received.permute(2, 0, 1)
        at_once = RUN_BLOCKS_GPU if keys.is_cuda else RUN_BLOCKS
        for at in range(0, len(ranges), at_once):
            progress("encoding blocks", done, steps)
            some = ranges[at : at + at_once]
            part = slice(some[0][0], some[-1][1])
            rotations = tuple(None if layer[3] is None else layer[3].part(part) for layer in of_group)
            run = LeavingBlock(
                keys[:, :, part],
                values[:, :, part],
                part.start,
                rotations,
                received[part],
                ids[part],
                int(ids[part.start - 1]),
            )
            encode = functools.partial(_encoded, codecs[group], run, [stop - start for start, stop in some])
            coded = kept.value(f"sequence {row}, layer {group.layers[0]}, token {part.start}", encode)
            sections += [(a, b - a, CODED, bytes.fromhex(data)) for (a, b), data in zip(some, coded, strict=True)]
            done += len(some)
        parts.append(sections + exact_sections(last, keys[:, :, last:], values[:, :, last:], exact))
    progress("encoding blocks", steps, steps)
    shape = (geometry.layers, geometry.kv_heads, geometry.head_dim, total, BLOCK, min(SINKS, total))
    groups = geometry.groups if any(geometry.windows) else ()
    return SpectralPacket.build(PacketHeader(*shape, exact, step_scale, profile.id, groups), *parts)


def _encoded(codec: SpectralCodec, run: LeavingBlock, lengths: list[int]) -> list[str]:
    """Coded blocks of `lengths` tokens, hexadecimal."""
    return [bytes(data).hex() for data in encode_cold(codec, run, lengths)]


def _attended(call: AttentionCall) -> tuple[Tensor | None, Tensor]:
    """Output `[1, T, H, D]` (None: the model's own attention is to run), and what tokens received `[H, T]`."""
    both = attend_and_receive(call, BLOCK)
    if both is not None:
        return both[0], both[1][0]
    output, sums = causal_attention(call) or (None, None)
    return output, attention_received(call, BLOCK, None if sums is None else sums[0])


def coded_blocks(group: LayerGroup, total: int) -> list[tuple[int, int]]:
    """Ranges of the coded blocks of a prompt: whole blocks but the last, sinks and what is never read again left out."""
    first, last = coded_range(total)
    first = max(first, group.first_read(total) // BLOCK * BLOCK)
    starts = [first, *range((first // BLOCK + 1) * BLOCK, last, BLOCK)] if first < last else []
    return [(start, min(last, (start // BLOCK + 1) * BLOCK)) for start in starts]


def coded_range(total: int) -> tuple[int, int]:
    """First and one past the last coded token of a prompt: whole blocks but the last, sinks left out."""
    whole = max(0, (total - 1) // BLOCK - (0 if total % BLOCK == 0 else 1)) * BLOCK
    if whole <= SINKS:
        return total, total
    return SINKS, whole


def require_packet(profile: CalibrationProfile, packet: SpectralPacket) -> None:
    """Refuse a packet that another profile wrote.

    Raises:
        PacketError: naming both profiles.
    """
    h, g = packet.header, profile.geometry
    if h.profile_id != profile.id:
        raise PacketError(
            f"The packet was written with profile {h.profile_id.hex()[:12]}, this is profile "
            f"{profile.id.hex()[:12]}. Use the profile that packed it."
        )
    if (h.layers, h.kv_heads, h.head_dim) != (g.layers, g.kv_heads, g.head_dim):
        raise PacketError("The packet's shape does not fit the profile's model.")


@torch.no_grad()
@runs_model
def unpack_cache(
    model: nn.Module,
    profile: CalibrationProfile,
    packet: SpectralPacket | bytes | memoryview,
    *,
    threads: int = 2,
    progress: Progress = lambda done, total: None,
) -> DynamicCache:
    """Decode a packet (or its bytes) into a `DynamicCache` in the model's dtype, ready for `generate` to continue.

    `generate` takes the packed prompt's tokens and at least one more; given exactly the packed prompt it would feed it a
    second time, of which `RepeatedPromptWarning` tells: call `cache.crop(-1)` first.

    Raises:
        PacketError: damaged, or written with another profile. ProfileError: the profile is for another model.
        InputError: more tokens than the model has positions.
    """
    packet = packet if isinstance(packet, SpectralPacket) else SpectralPacket(packet)
    require_packet(profile, packet)
    h, binding = packet.header, bind(model)
    if h.groups and h.groups != binding.geometry.groups:
        raise PacketError("The packet's layers read other windows than this model's. Use the model that packed it.")
    numbers = sorted({s.group for s in packet.sections if s.kind == CODED})
    kinds = [h.all_groups[number] for number in numbers]
    codecs = dict(zip(numbers, profile_codecs(model, profile, kinds, step_scale=h.step_scale), strict=True))
    for number, codec in codecs.items():
        require_room(packet, number, codec)
    require_positions(model, h.tokens, "The packet", "It belongs to another model.")
    starts = [min(s.start for s in packet.sections if s.group == i) for i in range(len(h.all_groups))]
    caches = [
        torch.empty(
            (2, len(kind.layers), 1, h.kv_heads, h.tokens - start, h.head_dim),
            dtype=model.dtype,
            device=model_device(model),
        )
        for kind, start in zip(h.all_groups, starts, strict=True)
    ]
    rotations = binding.tables(binding.tables.prompt(h.tokens))
    Unpacking(packet, codecs, caches, starts, rotations).run(threads, progress)
    cache = UnpackedCache(config=model.config)
    where = {layer: (i, at) for i, kind in enumerate(h.all_groups) for at, layer in enumerate(kind.layers)}
    for layer in range(h.layers):
        group, at = where[layer]
        fill_layer(cache, layer, caches[group][0, at], caches[group][1, at], h.tokens)
    return cache


def fill_layer(cache: DynamicCache, layer: int, keys: Tensor, values: Tensor, tokens: int) -> None:
    """Put the newest of `tokens` tokens `[B, Hk, n, D]` into a layer of transformers' own cache, which has seen them all."""
    own = cache.layers[layer]
    if type(own) is DynamicLayer:  # without a copy
        own.lazy_initialization(keys, values)
        own.keys, own.values = keys, values
        return
    cache.update(keys, values, layer)
    if getattr(own, "is_sliding", False):
        own.cumulative_length = tokens


@torch.no_grad()
def continue_from(loaded: LoadedModel, cache: DynamicCache, text: str, new_tokens: int) -> str:
    """Greedy continuation of the cached prompt followed by `text`; returns the generated text.

    Raises:
        InputError: `text` has no tokens, or the continuation goes beyond the model's last position.
    """
    ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(loaded.device)
    if ids.shape[1] == 0:
        raise InputError("The text to continue with has no tokens.")
    require_known_ids(loaded.model, ids)
    wanted = cache.get_seq_length() + ids.shape[1] + new_tokens
    require_positions(loaded.model, wanted, "The packed prompt with the text to come", "Ask for fewer new tokens.")
    out: list[int] = []
    for _ in range(new_tokens):
        token = loaded.model(input_ids=ids, **with_cache(loaded.model, cache), use_cache=True).logits[:, -1].argmax(-1)
        if int(token) == loaded.tokenizer.eos_token_id:
            break
        out.append(int(token))
        ids = token[:, None]
    return loaded.tokenizer.decode(out)
