"""A cache as it is, codes unchanged: for pickle, deepcopy, and saving in the middle of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from spectralquant.cache.binding import bound_model
from spectralquant.cache.groups import CacheGroup, CacheGroups
from spectralquant.cache.persist.snapshot_file import checked_facts, file_metadata
from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.cache.tokens.positions import TokenPositions
from spectralquant.cache.tokens.state import CacheState
from spectralquant.errors import InputError, ProfileError
from spectralquant.files import write_bytes
from spectralquant.profile.model import CalibrationProfile
from spectralquant.surroundings import own_arithmetic

FIRST_FORMAT, FORMAT = "spectralquant.cache.1", "spectralquant.cache.2"


@dataclass
class CacheSnapshot:
    """Facts and tensors of a cache; `sequences` holds each group's blocks themselves where a copy in this process may share them."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]
    sequences: list[list[list[StoredBlock]]] | None = None

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
def take_snapshot(
    state: CacheState,
    groups: CacheGroups,
    own: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    share_blocks: bool = False,
) -> CacheSnapshot:
    """Freeze tokens, blocks and a cache's `own` tensors. facts: options, model, windows and profile of the cache, and `of`: the
    number format and device of its model."""
    tensors = {}
    for number, group in enumerate(state.groups):
        parts = [layer.parts() for layer in group.layers] if group.sequences else [{}]
        tensors |= {_name(number, name): torch.stack([each[name] for each in parts]).cpu() for name in parts[0]}
    for name, tensor in ({"ids": state.ids} | state.positions.tensors()).items():
        if tensor is not None:
            tensors[name] = tensor.cpu().clone()
    tensors |= {f"own.{name}": t.cpu().clone() for name, t in own.items()}
    about = [_group_facts(group, number, tensors, share_blocks) for number, group in enumerate(groups)]
    sequences = [[list(row) for row in group.sequences] for group in state.groups] if share_blocks else None
    return CacheSnapshot({**facts, "groups": about}, tensors, sequences)


def _name(group: int, name: str) -> str:
    """What a tensor of a group is called."""
    return f"{group}.{name}"


def _group_facts(group: CacheGroup, number: int, tensors: dict[str, Tensor], share_blocks: bool) -> dict[str, Any]:
    """Where a group's tokens lie; its blocks go to `tensors` unless this process shares them."""
    numbers = {b: i for i, b in enumerate(dict.fromkeys(b for blocks in group.tokens.sequences for b in blocks))}
    for block, i in () if share_blocks else numbers.items():
        data = bytearray(group.tiers[block.tier].to_bytes(block))
        tensors[_name(number, f"block.{i}")] = torch.frombuffer(data, dtype=torch.uint8)
    return {
        "blocks": [(b.tier, b.start, b.tokens) for b in numbers],
        "rows": [[numbers[b] for b in row] for row in group.tokens.sequences],
        "first": group.tokens.first,
        "recent_from": group.tokens.recent_from,
        "recording": group.tokens.recording,
    }


def saved_model(snapshot: CacheSnapshot, model: nn.Module | None, profile: CalibrationProfile | None) -> nn.Module:
    """The model to restore a snapshot for: `model`, or else a bound model of this process with the same weights.

    Raises:
        InputError: no such model. ProfileError: the snapshot was taken with another profile.
    """
    facts = snapshot.facts
    model = bound_model(facts["model"], tuple(facts["windows"]), facts.get("of", ())) if model is None else model
    if model is None:
        raise InputError(
            "No model with the saved cache's weights is bound in this process. Call spectralquant.bind(model) before "
            "unpickling, or use SpectralCache.load(path, model, profile)."
        )
    given = None if profile is None else profile.id.hex()
    if given != facts["profile"]:
        raise ProfileError(f"The cache was saved with profile {facts['profile']}, this is {given}. Load the right one.")
    return model


@own_arithmetic()
def restore_tokens(
    snapshot: CacheSnapshot, state: CacheState, groups: CacheGroups, device: torch.device
) -> dict[str, Tensor]:
    """Put a snapshot's tokens into a new cache of the saved options, on a device; returns the cache's own tensors.

    Raises:
        InputError: the snapshot is of a model whose layers read other windows.
    """
    facts, tensors = snapshot.facts, snapshot.tensors
    if state.geometry.windows != tuple(facts["windows"]):
        raise InputError("The cache was saved with a model whose layers read other windows. Load it with that model.")
    for number, (group, about) in enumerate(zip(groups, facts["groups"], strict=True)):
        shared = None if snapshot.sequences is None else snapshot.sequences[number]
        _restore_group(group, number, about, tensors, shared, device)
    if "ids" in tensors:
        state.ids = tensors["ids"].to(device)
    state.positions = TokenPositions.restored(tensors, device)
    return {k.removeprefix("own."): t.to(device) for k, t in tensors.items() if k.startswith("own.")}


def _restore_group(
    group: CacheGroup,
    number: int,
    facts: dict[str, Any],
    tensors: dict[str, Tensor],
    shared: list[list[StoredBlock]] | None,
    device: torch.device,
) -> None:
    """Put a group's tokens where they were."""
    tokens, prefix = group.tokens, _name(number, "")
    saved = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    saved = {name: t for name, t in saved.items() if not name.startswith("block.")}
    if any(len(t) != len(tokens.layers) for t in saved.values()):
        raise InputError("The saved cache holds tensors of another number of layers.")
    for index, layer in enumerate(tokens.layers):
        layer.take_parts({name: t[index].to(device).clone() for name, t in saved.items()})
    span = tokens.span
    span.first, span.recent_from, span.recording = (facts[k] for k in ("first", "recent_from", "recording"))
    if shared is not None:
        tokens.sequences = [list(row) for row in shared]
        return
    blocks = [
        group.tiers[tier].from_bytes(tensors[_name(number, f"block.{i}")].numpy().tobytes(), start, count)
        for i, (tier, start, count) in enumerate(facts["blocks"])
    ]
    tokens.sequences = [[blocks[i] for i in row] for row in facts["rows"]]
