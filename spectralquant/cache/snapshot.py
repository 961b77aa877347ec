"""A cache as it is, codes unchanged: for pickle, deepcopy, and saving in the middle of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from spectralquant.cache.binding import bound_model
from spectralquant.cache.positions import TokenPositions
from spectralquant.cache.snapshot_file import checked_facts, file_metadata
from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.codec.adaptive import AdaptiveRankCompressor
from spectralquant.errors import InputError, ProfileError
from spectralquant.files import write_bytes
from spectralquant.profile import CalibrationProfile

if TYPE_CHECKING:
    from spectralquant.cache.pool import SpectralBufferPool
    from spectralquant.cache.spectral_cache import SpectralCache

FORMAT = "spectralquant.cache.1"
LAYER_TENSORS = ("keys", "values", "sink_keys", "sink_values", "received")


@dataclass
class CacheSnapshot:
    """Facts and tensors of a cache; `rows` holds the blocks themselves where a copy in this process may share them."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    rows: list[list[StoredBlock]] | None = None

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file, atomically."""
        data = safetensors_bytes(self.tensors, metadata=file_metadata(FORMAT, self.facts, self.tensors))
        write_bytes(path, data)

    @classmethod
    def load(cls, path: str | Path) -> CacheSnapshot:
        """Read a file that `save` wrote.

        Raises:
            InputError: missing, damaged, or something else.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"There is no saved cache {path}. Check the path.")
        try:
            with safe_open(path, framework="pt") as handle:
                meta = handle.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise InputError(f"{path} is not a saved SpectralCache.")
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except InputError:
            raise
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a saved SpectralCache ({error}).") from error
        return cls(checked_facts(path, meta, tensors), tensors)


def take_snapshot(cache: SpectralCache, *, share_blocks: bool = False) -> CacheSnapshot:
    """Freeze a cache; background work is finished first."""
    cache.recover()
    cache.compressor.settle()
    cache.report.kept = True
    state, tensors = cache.state, {}
    for name in LAYER_TENSORS:
        held = [getattr(layer, name) for layer in state.layers]
        if state.rows and held[0] is not None:
            tensors[name] = torch.stack(held).cpu()
    for name, held in ({"ids": state.ids} | state.positions.tensors()).items():
        if held is not None:
            tensors[name] = held.cpu().clone()
    tensors |= {f"own.{name}": t.cpu().clone() for name, t in cache.own_tensors().items()}
    if (drift := _adaptive(cache)) is not None:
        tensors |= {f"adaptive.{name}": t.cpu() for name, t in drift.state().items()}
    numbers = {b: i for i, b in enumerate(dict.fromkeys(b for blocks in state.rows for b in blocks))}
    blocks = [(b.tier, b.start, b.tokens) for b in numbers]
    if not share_blocks:
        for block, i in numbers.items():
            data = bytearray(cache.tiers[block.tier].to_bytes(block))
            tensors[f"block.{i}"] = torch.frombuffer(data, dtype=torch.uint8)
    facts = {
        "options": cache.snapshot_options(),
        "model": cache.binding.weights_sha256,
        "profile": None if cache.profile is None else cache.profile.id.hex(),
        "blocks": blocks,
        "rows": [[numbers[b] for b in row] for row in state.rows],
        "coded_tokens": state.coded_tokens,
    }
    return CacheSnapshot(facts, tensors, [list(row) for row in state.rows] if share_blocks else None)


def restore(
    kind: type[SpectralCache],
    snapshot: CacheSnapshot,
    model: nn.Module | None,
    profile: CalibrationProfile | None,
    *,
    pool: SpectralBufferPool | None = None,
) -> SpectralCache:
    """A cache from a snapshot. Without `model` a bound model of this process with the same weights is used.

    Raises:
        InputError: no such model. ProfileError: the snapshot was taken with another profile.
    """
    facts = snapshot.facts
    model = bound_model(facts["model"]) if model is None else model
    if model is None:
        raise InputError(
            "No model with the saved cache's weights is bound in this process. Call spectralquant.bind(model) before "
            "unpickling, or use SpectralCache.load(path, model, profile)."
        )
    mine = None if profile is None else profile.id.hex()
    if mine != facts["profile"]:
        raise ProfileError(f"The cache was saved with profile {facts['profile']}, this is {mine}. Load the right one.")
    cache = kind(model, profile, pool=pool, **facts["options"])
    device = cache.binding.device
    state, tensors = cache.state, snapshot.tensors
    for index, layer in enumerate(state.layers):
        if "keys" not in tensors:
            break
        layer.lazy_initialization(*(tensors[name][index].to(device) for name in ("keys", "values")))
        for name in LAYER_TENSORS:
            if name in tensors:
                setattr(layer, name, tensors[name][index].to(device).clone())
    if "ids" in tensors:
        state.ids = tensors["ids"].to(device)
    state.positions = TokenPositions.restored(tensors, device)
    if (drift := _adaptive(cache)) is not None:
        drift.load_state({k.removeprefix("adaptive."): t for k, t in tensors.items() if k.startswith("adaptive.")})
    own = {k.removeprefix("own."): t.to(device) for k, t in tensors.items() if k.startswith("own.")}
    cache.take_own_tensors(own)
    state.coded_tokens = facts["coded_tokens"]
    cache.report.note_held(state.total, state.coded_tokens)
    if snapshot.rows is not None:
        state.rows = [list(row) for row in snapshot.rows]
        return cache
    blocks = [
        cache.tiers[tier].from_bytes(tensors[f"block.{i}"].numpy().tobytes(), start, tokens)
        for i, (tier, start, tokens) in enumerate(facts["blocks"])
    ]
    state.rows = [[blocks[i] for i in row] for row in facts["rows"]]
    return cache


def _adaptive(cache: SpectralCache) -> AdaptiveRankCompressor | None:
    codec = cache.tiers["cold"].codec if "cold" in cache.tiers else None
    return codec if isinstance(codec, AdaptiveRankCompressor) else None
