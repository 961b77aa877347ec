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
from spectralquant.cache.persist.snapshot_file import checked_facts, file_metadata
from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.cache.tokens.positions import TokenPositions
from spectralquant.codec.cold.adaptive import AdaptiveRankCompressor
from spectralquant.errors import InputError, ProfileError
from spectralquant.files import write_bytes
from spectralquant.profile.model import CalibrationProfile
from spectralquant.surroundings import own_arithmetic

if TYPE_CHECKING:
    from spectralquant.cache.pool import SpectralBufferPool
    from spectralquant.cache.spectral_cache import SpectralCache
    from spectralquant.cache.tokens.group import CacheGroup

FIRST_FORMAT, FORMAT = "spectralquant.cache.1", "spectralquant.cache.2"
LAYER_TENSORS = ("keys", "values", "sink_keys", "sink_values", "received")


@dataclass
class CacheSnapshot:
    """Facts and tensors of a cache; `rows` holds each group's blocks themselves where a copy in this process may share them."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    rows: list[list[list[StoredBlock]]] | None = None

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
                if meta.get("format") == FIRST_FORMAT:
                    raise InputError(f"{path} was saved by an older version. Save the cache again.")
                if meta.get("format") != FORMAT:
                    raise InputError(f"{path} is not a saved SpectralCache.")
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        except InputError:
            raise
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a saved SpectralCache ({error}).") from error
        return cls(checked_facts(path, meta, tensors), tensors)


@own_arithmetic()
def take_snapshot(cache: SpectralCache, *, share_blocks: bool = False) -> CacheSnapshot:
    """Freeze a cache; background work is finished first."""
    cache.recover()
    cache.groups.settle()
    cache.report.kept = True
    state, tensors = cache.state, {}
    for number, group in enumerate(state.groups):
        for name in LAYER_TENSORS:
            held = [getattr(layer, name) for layer in group.layers]
            if group.rows and held[0] is not None:
                tensors[_name(number, name)] = torch.stack(held).cpu()
    for name, held in ({"ids": state.ids} | state.positions.tensors()).items():
        if held is not None:
            tensors[name] = held.cpu().clone()
    tensors |= {f"own.{name}": t.cpu().clone() for name, t in cache.own_tensors().items()}
    for number, drift in _adaptive(cache):
        tensors |= {_name(number, f"adaptive.{name}"): t.cpu() for name, t in drift.state().items()}
    groups = [_group_facts(group, number, tensors, share_blocks) for number, group in enumerate(cache.groups)]
    facts = {
        "options": cache.snapshot_options(),
        "model": cache.binding.weights_sha256,
        "windows": list(cache.geometry.windows),
        "profile": None if cache.profile is None else cache.profile.id.hex(),
        "groups": groups,
    }
    rows = [[list(row) for row in group.rows] for group in state.groups] if share_blocks else None
    return CacheSnapshot(facts, tensors, rows)


def _name(group: int, name: str) -> str:
    """What a tensor of a group is called."""
    return f"{group}.{name}"


def _group_facts(group: CacheGroup, number: int, tensors: dict[str, Tensor], share_blocks: bool) -> dict[str, Any]:
    """Where a group's tokens lie; its blocks go to `tensors` unless this process shares them."""
    numbers = {b: i for i, b in enumerate(dict.fromkeys(b for blocks in group.tokens.rows for b in blocks))}
    for block, i in () if share_blocks else numbers.items():
        data = bytearray(group.tiers[block.tier].to_bytes(block))
        tensors[_name(number, f"block.{i}")] = torch.frombuffer(data, dtype=torch.uint8)
    return {
        "blocks": [(b.tier, b.start, b.tokens) for b in numbers],
        "rows": [[numbers[b] for b in row] for row in group.tokens.rows],
        "first": group.tokens.first,
        "recent_from": group.tokens.recent_from,
        "recording": group.tokens.recording,
    }


@own_arithmetic()
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
    windows = tuple(facts["windows"])
    model = bound_model(facts["model"], windows) if model is None else model
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
    if cache.geometry.windows != windows:
        raise InputError("The cache was saved with a model whose layers read other windows. Load it with that model.")
    state, tensors = cache.state, snapshot.tensors
    for number, (group, held) in enumerate(zip(cache.groups, facts["groups"], strict=True)):
        _restore_group(group, number, held, tensors, None if snapshot.rows is None else snapshot.rows[number])
    if "ids" in tensors:
        state.ids = tensors["ids"].to(device)
    state.positions = TokenPositions.restored(tensors, device)
    for number, drift in _adaptive(cache):
        mine = _name(number, "adaptive.")
        drift.load_state({k.removeprefix(mine): t for k, t in tensors.items() if k.startswith(mine)})
    own = {k.removeprefix("own."): t.to(device) for k, t in tensors.items() if k.startswith("own.")}
    cache.take_own_tensors(own)
    cache.report.note_held(state.total, state.coded_tokens)
    return cache


def _restore_group(
    group: CacheGroup,
    number: int,
    facts: dict[str, Any],
    tensors: dict[str, Tensor],
    shared: list[list[StoredBlock]] | None,
) -> None:
    """Put a group's tokens where they were."""
    tokens = group.tokens
    device = group.compressor.state.binding.device
    for index, layer in enumerate(tokens.layers):
        found = {name: tensors.get(_name(number, name)) for name in LAYER_TENSORS}
        if any(t is not None and len(t) != len(tokens.layers) for t in found.values()):
            raise InputError("The saved cache holds tensors of another number of layers.")
        found = {name: t[index].to(device).clone() for name, t in found.items() if t is not None}
        if "keys" in found:
            layer.lazy_initialization(found["keys"], found["values"])
        for name, tensor in found.items():
            setattr(layer, name, tensor)
    tokens.first, tokens.recent_from, tokens.recording = (facts[k] for k in ("first", "recent_from", "recording"))
    if shared is not None:
        tokens.rows = [list(row) for row in shared]
        return
    blocks = [
        group.tiers[tier].from_bytes(tensors[_name(number, f"block.{i}")].numpy().tobytes(), start, count)
        for i, (tier, start, count) in enumerate(facts["blocks"])
    ]
    tokens.rows = [[blocks[i] for i in row] for row in facts["rows"]]


def _adaptive(cache: SpectralCache) -> list[tuple[int, AdaptiveRankCompressor]]:
    """Adaptive cold codecs by the number of their group."""
    found = [(i, getattr(g.tiers.get("cold"), "codec", None)) for i, g in enumerate(cache.groups)]
    return [(i, codec) for i, codec in found if isinstance(codec, AdaptiveRankCompressor)]
