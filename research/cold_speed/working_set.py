"""Time of a token read through a packet's cold cache, with and without a working set, against the warm tier."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.models.forward import with_cache
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.schema import TierSummary
from spectralquant.profile.tensors import FixedTier, StoredBasis

Row = dict[str, Any]
BITS = 4
WIDEST = 2.6  # of the outermost of 16 points, in standard deviations
FIT_TOKENS = 1024
UNTIL_KEPT = 10
TOKENS = 12


def working_set_rows(loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor, shape: ModelShape) -> list[Row]:
    """A token's time after `ids: [1, T]` (the first ones, which decode the packet, beside): every tier and working set."""
    with torch.no_grad():
        profile = with_fixed_tiers(loaded, profile, ids[:, :FIT_TOKENS])
        packet = pack_prompt(loaded.model, profile, ids)[0]
        every = {"background": True, "working_set": 1 << 36}
        cases = {
            "a token, transformers' own cache": None,
            "a token, warm tier": {"tier": "warm"},
            "a token, hot tier": {"tier": "hot"},
            "a token, cold tier": {"tier": "cold"},
            **{
                f"a token, cold tier kept as {kept}": {"tier": "cold", "working_tier": kept, **every}
                for kept in ("exact", "warm", "hot")
            },
        }
        rows = [_row(loaded, profile, packet, ids, name, options) for name, options in cases.items()]
    tokens = ids.shape[1]
    fp16 = tokens * shape.kv_bytes_per_token
    base = {"model": shape.name, "context": tokens, "batch": 1, "fp16_bytes": fp16}
    return [base | row | {"gb_s": fp16 / row["seconds"] / 1e9} for row in rows]


def _row(
    loaded: LoadedModel, profile: CalibrationProfile, packet: Any, ids: Tensor, name: str, options: dict | None
) -> Row:
    model = loaded.model
    if options is None:
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, **with_cache(model, cache), use_cache=True, logits_to_keep=1)
    elif options["tier"] == "cold":
        cache = SpectralCache.unpack(model, profile, packet, **options)
    else:
        cache = SpectralCache(model, profile, **options)
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    times = []
    for i in range(UNTIL_KEPT + TOKENS):
        token = ids[:, i : i + 1]
        _synchronize()
        begin = time.perf_counter()
        model(input_ids=token, **with_cache(model, cache), use_cache=True)
        _synchronize()
        times.append(time.perf_counter() - begin)
    late = sorted(times[UNTIL_KEPT:])
    row: Row = {
        "what": name,
        "seconds": statistics.median(late),
        "seconds_low": late[len(late) // 5],
        "seconds_high": late[-1 - len(late) // 5],
        "tokens_s": 1 / statistics.median(late),
        "stages_s": {"first token": times[0], f"slowest of the next {UNTIL_KEPT - 1}": max(times[1:UNTIL_KEPT])},
    }
    if isinstance(cache, SpectralCache):
        row["wait_s"] = cache.spent.wait_s
        row["working_bytes"] = cache.groups.working_bytes
    return row


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def with_fixed_tiers(loaded: LoadedModel, profile: CalibrationProfile, ids: Tensor) -> CalibrationProfile:
    """The profile with a warm and a hot tier of 4 bits whose random bases and evenly spaced points fit a prompt's statistics."""
    from spectralquant.cache.binding import bind
    from spectralquant.rotary import undo_rope

    g, cache = loaded.geometry, DynamicCache(config=loaded.model.config)
    loaded.model(input_ids=ids, **with_cache(loaded.model, cache), use_cache=True, logits_to_keep=1)
    tables = bind(loaded.model).tables
    rotations = tables(tables.prompt(cache.get_seq_length()))
    rotated, plain, values = [], [], []
    for layer, rotation in zip(cache.layers, rotations, strict=True):
        keys = layer.keys[0].float()
        rotated.append(keys.transpose(0, 1).flatten(1))
        plain.append((keys if rotation is None else undo_rope(keys, rotation)).transpose(0, 1).flatten(1))
        values.append(layer.values[0].float().transpose(0, 1).flatten(1))
    warm = _fixed(*(torch.cat(x, dim=1) for x in (plain, values)), g.layer_width)
    hot = _fixed(*(torch.cat(x, dim=1) for x in (rotated, values)), g.head_dim)
    summary = profile.sidecar.tiers["cold"]
    names = {"warm": warm, "hot": hot}
    tiers = profile.sidecar.tiers | {name: TierSummary(**vars(summary)) for name in names}
    return CalibrationProfile(replace_tiers(profile, tiers), profile.heads, {**profile.tiers, **names})


def replace_tiers(profile: CalibrationProfile, tiers: dict[str, TierSummary]) -> Any:
    """The profile's sidecar with other tiers."""
    return profile.sidecar.model_copy(update={"tiers": tiers})


def _fixed(keys: Tensor, values: Tensor, span: int) -> FixedTier:
    bases = [_basis(x, span) for x in (keys, values)]
    width = keys.shape[1]
    bits = torch.full((width,), BITS, dtype=torch.uint8)
    points = torch.linspace(-WIDEST, WIDEST, 2**BITS).repeat(width)
    return FixedTier(bases[0], bases[1], bits, bits.clone(), points, points.clone())


def _basis(x: Tensor, span: int) -> StoredBasis:
    generator = torch.Generator(x.device).manual_seed(0)
    groups = x.shape[1] // span
    matrix = torch.linalg.qr(torch.randn(groups, span, span, generator=generator, device=x.device))[0]
    mean = x.mean(0)
    y = torch.einsum("tgi,gri->gtr", (x - mean).view(len(x), groups, span), matrix)
    deviation = y.std(1).flatten().clamp_min(1e-4).cpu()
    rows = matrix.flatten(0, 1).half().cpu()
    ranks = torch.full((groups,), span)
    none = torch.zeros(0, x.shape[1], dtype=torch.float16)
    return StoredBasis(rows, rows, 1 / deviation, deviation, mean.cpu(), ranks, torch.ones(len(rows)), none)
