"""A prompt's KV cache to a packet and back.

`pack_prompt` runs the prefill once, exactly, and encodes every token between the sinks and the recent window.
`unpack_cache` decodes a packet into a `transformers` cache that `generate` continues from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from spectralquant.cache.binding import bind
from spectralquant.cache.passes.repeated import UnpackedCache
from spectralquant.cache.persist.packet_layout import require_room
from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_keys
from spectralquant.codec.cold.coded_block import announced_tokens
from spectralquant.codec.cold.from_profile import chosen_bound, cold_codec
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.packet import (
    CODED,
    EXACT,
    EXACT_DTYPES,
    PacketHeader,
    Section,
    SpectralPacket,
    exact_sections,
    packet_float,
)
from spectralquant.errors import InputError, PacketError
from spectralquant.geometry import BLOCK, SINKS, LayerGroup
from spectralquant.hooks.observe import attention_received
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device, runs_model
from spectralquant.models.forward import with_cache
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.models.load import LoadedModel
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.model import CalibrationProfile
from spectralquant.rotary import Rotation, undo_rope
from spectralquant.streams import as_caller

Progress = Callable[[int, int], None]
RUN_BLOCKS = 16
DTYPE_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


def profile_codecs(
    model: nn.Module,
    profile: CalibrationProfile,
    groups: Sequence[LayerGroup],
    *,
    step_scale: float = 1.0,
    adaptive: bool = False,
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
    options = {"step_scale": scale, "adaptive": adaptive, "bound": chosen_bound(profile, bound)}
    return [
        cold_codec(profile, tier, layers, geometry.part(layers), embedding, device, **options)
        for layers, tier in profile.parts("cold", groups).items()
    ]


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
    adaptive: bool = False,
    bound: float | str | None = "auto",
    progress: Progress = lambda done, total: None,
) -> list[SpectralPacket]:
    """Packets, one a sequence, of prompts `input_ids: [B, T]`; padding (left or right, by `attention_mask`) is left out.

    The first 4 and the last 128 to 255 tokens of each are exact: in the model's dtype (`auto`), or `int8`. Of layers with a
    sliding window only tokens that can still be read are in a packet, and all exact where that are no more than 255.

    Raises:
        InputError: an empty prompt, one beyond the model's last position, or an unknown `exact`.
    """
    exact = DTYPE_NAMES[model.dtype] if exact == "auto" else exact
    if exact not in EXACT_DTYPES:
        raise InputError(f"exact={exact!r} is not one of auto, {', '.join(EXACT_DTYPES)}.")
    coded = [group for group in bind(model).geometry.groups if group.reads_beyond(2 * BLOCK)]
    codecs = profile_codecs(model, profile, coded, step_scale=step_scale, adaptive=adaptive, bound=bound)
    by_group = dict(zip(coded, codecs, strict=True))
    packets = []
    for row, ids in enumerate(input_ids):
        if attention_mask is not None:
            ids = ids[attention_mask[row].bool()]
        if len(ids) == 0:
            raise InputError("A prompt is empty; at least one token is needed.")
        require_known_ids(model, ids)
        require_positions(model, len(ids), "The prompt", "Shorten it (sq pack --max-tokens).")
        packets.append(_pack_one(model, profile, by_group, ids, exact, packet_float(step_scale), progress))
    return packets


def _pack_one(
    model: nn.Module,
    profile: CalibrationProfile,
    codecs: Mapping[LayerGroup, SpectralCodec],
    ids: Tensor,
    exact: str,
    step_scale: float,
    progress: Progress,
) -> SpectralPacket:
    binding = bind(model)
    geometry, total = binding.geometry, len(ids)
    seen: list[tuple[Tensor, Tensor, Tensor, Rotation | None]] = []

    def observe(call: AttentionCall) -> None:
        if call.shared:
            return
        rotation = call.rotation(geometry.layout) if geometry.rotary[call.layer] else None
        seen.append((call.key[0], call.value[0], attention_received(call, BLOCK), rotation))

    binding.tables.forget_lengths()
    with AttentionTap(model, observe):
        model(input_ids=ids[None].to(model_device(model)), use_cache=False, logits_to_keep=1)
    work = {group: coded_blocks(group, total) if group in codecs else [] for group in geometry.groups}
    steps, done = sum(map(len, work.values())), 0
    parts: list[list[tuple[int, int, int, bytes]]] = []
    for group, ranges in work.items():
        mine = [seen[layer] for layer in group.layers]
        keys, values, received = (torch.stack([layer[i] for layer in mine]) for i in range(3))
        first = ranges[0][0] if ranges else total
        last = ranges[-1][1] if ranges else group.first_read(total)
        head = first if first == SINKS else 0
        sections = exact_sections(0, keys[:, :, :head], values[:, :, :head], exact)
        for at in range(0, len(ranges), RUN_BLOCKS):
            progress(done, steps)
            blocks = []
            for start, stop in ranges[at : at + RUN_BLOCKS]:
                part = slice(start, stop)
                block = KVBlock(
                    keys=_unrotated(keys[:, :, part], [layer[3] for layer in mine], part),
                    values=values[:, :, part].permute(2, 0, 1, 3).float(),
                    start=start,
                    received=received.permute(2, 0, 1)[part],
                    token_ids=ids[part],
                    previous_id=int(ids[start - 1]),
                )
                blocks.append(block)
            coded, done = codecs[group].encode_run(blocks), done + len(blocks)
            sections += [(b.start, b.tokens, CODED, data) for b, data in zip(blocks, coded, strict=True)]
        parts.append(sections + exact_sections(last, keys[:, :, last:], values[:, :, last:], exact))
    progress(steps, steps)
    shape = (geometry.layers, geometry.kv_heads, geometry.head_dim, total, BLOCK, min(SINKS, total))
    groups = geometry.groups if any(geometry.windows) else ()
    return SpectralPacket.build(PacketHeader(*shape, exact, step_scale, profile.id, groups), *parts)


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


def _unrotated(keys: Tensor, rotations: Sequence[Rotation | None], part: slice) -> Tensor:
    layers = [
        k.float() if r is None else undo_rope(k.float(), r.part(part)) for k, r in zip(keys, rotations, strict=True)
    ]
    return torch.stack(layers).permute(2, 0, 1, 3)


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
    held = [
        torch.empty(
            (2, len(kind.layers), 1, h.kv_heads, h.tokens - start, h.head_dim),
            dtype=model.dtype,
            device=model_device(model),
        )
        for kind, start in zip(h.all_groups, starts, strict=True)
    ]
    rotations = binding.tables(binding.tables.prompt(h.tokens))

    def place(group: int, first: int, k: Tensor, v: Tensor) -> None:
        part = slice(first - starts[group], first - starts[group] + k.shape[2])
        for which, x in enumerate((k, v)):
            held[group][which, :, 0, :, part] = x.to(held[group])

    def decode(run: Sequence[Section]) -> int:
        first, group = run[0].start, run[0].group
        if run[0].kind == EXACT:
            place(group, first, *packet.exact(run[0]))
            return len(run)
        codec, layers = codecs[group], h.all_groups[group].layers
        for coded in codec.coefficients_run([_checked(packet, s) for s in run]):
            plain, v = codec.decode_coefficients(coded)
            part = slice(first, first + coded.tokens)
            mine = tuple(None if rotations[i] is None else rotations[i].part(part) for i in layers)
            place(group, first, rotate_keys(mine, plain).permute(1, 2, 0, 3), v.permute(1, 2, 0, 3))
            first += coded.tokens
        return len(run)

    done = 0
    with ThreadPoolExecutor(threads) as pool:
        for count in pool.map(as_caller(decode, model_device(model)), _runs(packet.sections)):
            done += count
            progress(done, len(packet.sections))
    cache = UnpackedCache(config=model.config)
    where = {layer: (i, at) for i, kind in enumerate(h.all_groups) for at, layer in enumerate(kind.layers)}
    for layer in range(h.layers):
        group, at = where[layer]
        fill_layer(cache, layer, held[group][0, at], held[group][1, at], h.tokens)
    return cache


def _runs(sections: Sequence[Section]) -> list[list[Section]]:
    """Exact sections alone, coded ones a few at a time."""
    out: list[list[Section]] = []
    for section in sections:
        alike = out and (section.kind, section.group) == (out[-1][0].kind, out[-1][0].group)
        more = alike and section.kind == CODED and len(out[-1]) < RUN_BLOCKS
        out[-1].append(section) if more else out.append([section])
    return out


def _checked(packet: SpectralPacket, section: Section) -> memoryview:
    data = packet.body(section)
    if announced_tokens(data) != section.tokens:
        raise PacketError(f"A block announced {section.tokens} tokens and holds {announced_tokens(data)}.")
    return data


def fill_layer(cache: DynamicCache, layer: int, keys: Tensor, values: Tensor, tokens: int) -> None:
    """Put the newest of `tokens` tokens `[B, Hk, n, D]` into a layer of transformers' own cache, which has seen them all."""
    cache.update(keys, values, layer)
    if getattr(cache.layers[layer], "is_sliding", False):
        cache.layers[layer].cumulative_length = tokens


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
