"""A model's prefill, the same with cold writing, and the first token from packets instead."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from research.cold_speed.codec import RUNS, timed
from research.cold_speed.sample import SpeedSample, tier_of
from spectralquant.cache.binding import bind
from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.codec.cold.fused.encode import FusedEncoder
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, turns_of
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.packet import SpectralPacket
from spectralquant.models.forward import with_cache
from spectralquant.models.identity import model_identity
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.schema import CalibrationOptions, ProfileSidecar, TextIdentity, TierSummary
from spectralquant.profile.tensors import ColdTier, HeadSpectra, StoredBasis
from spectralquant.rotary import undo_rope
from sqkernels.spectral_rows import TokenSlots

Row = dict[str, Any]
FIT_TOKENS = 2048


def prefill_rows(loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor, shape: ModelShape) -> list[Row]:
    """Times of one context: prefill, prefill with cold writing, packing, and the first token from a packet."""
    model, tokens, cuda = loaded.model, ids.shape[1], loaded.device.type == "cuda"
    runs, warm = (RUNS, 2) if tokens <= 8192 else (3, 1)
    base = {"model": shape.name, "context": tokens, "batch": 1, "fp16_bytes": tokens * shape.kv_bytes_per_token}

    def plain() -> None:
        _prefill(loaded, ids)

    def cold() -> None:
        cache = SpectralCache(model, profile, tier="cold", background=False)
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)

    out: list[Row] = []
    with torch.no_grad():
        for name, call in (("prefill", plain), ("prefill with cold writing", cold)):
            seconds, spread = timed(call, cuda, runs, warm)
            out.append(base | {"what": name, "seconds": seconds, **spread})
        packet = pack_prompt(model, profile, ids)[0]
        seconds, spread = timed(lambda: pack_prompt(model, profile, ids), cuda, min(runs, 3), 0)
        out.append(base | {"what": "prefill and packing", "seconds": seconds, **spread, **_facts(packet)})
        out += [base | row | _facts(packet) for row in _first_tokens(loaded, profile, packet, ids, runs, warm)]
    for row in out:
        row["gb_s"] = row["fp16_bytes"] / row["seconds"] / 1e9
    return out


def plain_prefill_row(loaded: LoadedModel, ids: Tensor, shape: ModelShape) -> Row:
    """Prefill alone of some contexts `[B, T]`."""
    batch, tokens = ids.shape
    with torch.no_grad():
        seconds, spread = timed(lambda: _prefill(loaded, ids), loaded.device.type == "cuda", 5, 1)
    fp16 = batch * tokens * shape.kv_bytes_per_token
    base = {"model": shape.name, "context": tokens, "batch": batch, "fp16_bytes": fp16}
    return base | {"what": "prefill", "seconds": seconds, **spread, "gb_s": fp16 / seconds / 1e9}


def _prefill(loaded: LoadedModel, ids: Tensor) -> None:
    cache = DynamicCache(config=loaded.model.config)
    loaded.model(input_ids=ids, **with_cache(loaded.model, cache), use_cache=True, logits_to_keep=1)


def _facts(packet: SpectralPacket) -> Row:
    return {"packet_bytes": packet.nbytes, "coded_tokens": packet.coded_tokens, "coded_bytes": packet.coded_bytes}


def _first_tokens(
    loaded: LoadedModel, profile: CalibrationProfile, packet: SpectralPacket, ids: Tensor, runs: int, warm: int
) -> list[Row]:
    """Unpacking alone and until the logits of one more token are there: from pinned memory, from disk."""
    model, cuda = loaded.model, loaded.device.type == "cuda"
    pinned = torch.from_numpy(np.frombuffer(bytes(packet), np.uint8).copy())
    pinned = pinned.pin_memory() if cuda else pinned
    last = ids[:, -1:]

    def unpacked(source: SpectralPacket) -> DynamicCache:
        return unpack_cache(model, profile, source)

    def first_token(source: SpectralPacket) -> None:
        cache = unpacked(source)
        model(input_ids=last, **with_cache(model, cache), use_cache=True)

    memory = lambda: SpectralPacket(memoryview(pinned.numpy()))  # noqa: E731
    cache = unpacked(memory())
    token = timed(lambda: model(input_ids=last, **with_cache(model, cache), use_cache=True), cuda, 5)[0]
    out = []
    for name, call in (
        ("unpacking from pinned memory", lambda: unpacked(memory())),
        ("first token from pinned memory", lambda: first_token(memory())),
    ):
        seconds, spread = timed(call, cuda, runs, warm)
        out.append({"what": name, "seconds": seconds, **spread, "token_s": token})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompt.sqkv"
        packet.save(path)

        def from_disk() -> None:
            first_token(SpectralPacket.open(path))

        def uncached() -> None:
            _drop_from_page_cache(path)
            from_disk()

        for name, call in (("first token from disk", uncached), ("first token from disk, file cached", from_disk)):
            seconds, spread = timed(call, cuda, runs, warm)
            out.append({"what": name, "seconds": seconds, **spread, "token_s": token})
    return out


def _drop_from_page_cache(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fitted_profile(
    loaded: LoadedModel, sample: SpeedSample, own: ModelShape, shape: ModelShape, ids: Tensor
) -> CalibrationProfile:
    """A profile of a model with random weights whose coefficients have the variances of the sample's.

    Means and gains are fitted on a prompt; bases are random. So symbols and bytes are near those of a real profile's.
    """
    device, geometry = loaded.device, loaded.geometry
    tier = tier_of(sample.at(shape, own, 16), geometry, shape.hidden, device)
    with torch.no_grad():
        cache = DynamicCache(config=loaded.model.config)
        loaded.model(input_ids=ids[:, :FIT_TOKENS], **with_cache(loaded.model, cache), use_cache=True, logits_to_keep=1)
    places = _places(loaded, cache)
    means = _means(loaded, cache)
    tier = replace(tier, key=_with_mean(tier.key, means[0]), value=_with_mean(tier.value, means[1]))
    codec = SpectralCodec(tier, geometry, embedding_weight(loaded.model), device, dtype=torch.float16)
    text = ids[0, :FIT_TOKENS].cpu().numpy()
    y = FusedEncoder(codec).coefficients(places, codec.token_rows([(-1, text)]), len(text))
    deviation = y.square().mean(1).sqrt().clamp_min(1e-6).cpu()
    split = codec.coder.ranks[0]
    tier = replace(tier, key=_with_gain(tier.key, deviation[:split]), value=_with_gain(tier.value, deviation[split:]))
    return _profile(loaded, tier)


def _places(loaded: LoadedModel, cache: DynamicCache) -> LayerSlots:
    tokens = cache.get_seq_length()
    place = torch.arange(tokens, device=loaded.device)
    keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
    tables = bind(loaded.model).tables
    turns = turns_of(tables(tables.prompt(tokens)))
    return LayerSlots.of(keys, values, TokenSlots.dense(keys[0], torch.zeros_like(place), place), turns)


def _means(loaded: LoadedModel, cache: DynamicCache) -> tuple[Tensor, Tensor]:
    tables = bind(loaded.model).tables
    rotations = tables(tables.prompt(cache.get_seq_length()))
    keys = [undo_rope(c.keys[0].float(), r).mean(1).flatten() for c, r in zip(cache.layers, rotations, strict=True)]
    return torch.cat(keys).cpu(), torch.cat([c.values[0].float().mean(1).flatten() for c in cache.layers]).cpu()


def _with_mean(basis: StoredBasis, mean: Tensor) -> StoredBasis:
    return replace(basis, mean=mean, predictor=basis.predictor * 1e-2)


def _with_gain(basis: StoredBasis, deviation: Tensor) -> StoredBasis:
    gain = basis.variance.sqrt() / deviation
    return replace(basis, gain=gain, back=1 / gain)


def _profile(loaded: LoadedModel, tier: ColdTier) -> CalibrationProfile:
    g = loaded.geometry
    eye = torch.eye(g.head_dim).expand(2, g.layers, g.kv_heads, -1, -1)
    ones = torch.ones(2, g.layers, g.kv_heads, g.head_dim)
    entropy, rank = torch.zeros(g.layers, g.heads), torch.ones(2, g.layers, g.kv_heads)
    heads = HeadSpectra(eye.half(), eye.half(), ones, ones, entropy, rank, rank)
    summary = TierSummary(
        target="a sample's statistics",
        step=1.0,
        predicted_ratio=1.0,
        alive_key=len(tier.key.gain) / g.width,
        alive_value=len(tier.value.gain) / g.width,
        captured_energy_key=1.0,
        captured_energy_value=1.0,
    )
    options = CalibrationOptions(
        steps=1, metric="none", span="auto", span_width=tier.key.analysis.shape[1], solver="random", block=128, sinks=4,
        predict="tokens", labels="none", seed=0,
    )  # fmt: skip
    sidecar = ProfileSidecar(
        schema_version=1,
        tensors_sha256="0" * 64,
        tensor_bytes=0,
        model=model_identity(loaded.name, loaded.model, g),
        text=TextIdentity(source="none", sha256="", tokens=0, window=1),
        calibration=options,
        tiers={"cold": summary},
        run={},
    )
    return CalibrationProfile(sidecar, heads, {"cold": tier})
