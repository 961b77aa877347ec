"""Does what a file put into a cache fit together? Asked once after loading; later code relies on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectralquant.cache.tiers.base import StoredBlock
from spectralquant.cache.tokens.group import GroupTokens
from spectralquant.cache.tokens.state import CacheState
from spectralquant.errors import InputError
from spectralquant.geometry import SINKS, CacheGeometry
from spectralquant.models.limits import require_positions

WHOLE = (int,)
OPTIONS = {
    "tier": (str,),
    "ages": (dict,),
    "max_bytes": (int, type(None)),
    "window": WHOLE,
    "compress_from": WHOLE,
    "working_set": WHOLE,
    "working_tier": (str,),
    "background": (bool,),
    "lag": WHOLE,
    "attention": (str,),
    "kernels": (str,),
    "select": (int, float, type(None)),
    "host": (bool,),
    "threads": WHOLE,
    "step_scale": (int, float),
    "exact_bits": WHOLE,
    "bound": (int, float, type(None)),
    "adaptive_ranks": (bool,),
    "crossover": WHOLE,
    "below": (str,),
    "heavy": WHOLE,
    "recent": WHOLE,
}
MOST_THREADS = 256


RENAMED = {"adaptive": "adaptive_ranks"}


def todays_options(options: Any) -> Any:
    """Saved options by the names they have now; what is no table of options is left for `require_options`."""
    return {RENAMED.get(name, name): value for name, value in options.items()} if isinstance(options, dict) else options


def require_options(options: Any) -> None:
    """Refuse options of a kind that no cache has.

    Raises:
        InputError: naming the option.
    """
    if not isinstance(options, dict) or not set(options) <= set(OPTIONS):
        raise InputError("the saved options are not a cache's")
    for name, value in options.items():
        kinds = OPTIONS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise InputError(f"the saved option {name} is {value!r}")
    numbers = [v for v in options.get("ages", {}).values()]
    if any(isinstance(v, bool) or not isinstance(v, int) for v in numbers) or options.get("threads", 1) > MOST_THREADS:
        raise InputError("the saved ages or threads are no numbers that a cache takes")
    if options.pop("adaptive_ranks", False):
        raise InputError("it was saved with adaptive ranks, in whose place is bound= now")


def require_whole(state: CacheState, own: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a cache of `model` whose tensors (its `own` ones included) and blocks do not describe the same tokens.

    Raises:
        InputError: naming what does not fit.
    """
    if not any(layer.is_initialized for group in state.groups for layer in group.layers):
        _need(all(not group.sequences for group in state.groups), "blocks without tokens")
        _need(state.ids is None and not state.positions.tensors(), "ids or positions without tokens")
        return
    batch = state.groups[0].layers[0].shape[0]
    for group in state.groups:
        _require_group(group, state.geometry, model.dtype, batch)
    lengths = {layer.get_seq_length() for group in state.groups for layer in group.layers}
    _need(len(lengths) == 1, "layers of different lengths")
    total = lengths.pop()
    _need(all(group.first <= group.kind.first_read(total) for group in state.groups), "tokens that would be read next")
    require_positions(model, total, "The saved cache", "It belongs to another model.")
    _need(state.ids is not None if state.keep_ids else True, "token ids are missing")
    if state.ids is not None:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        _need(_whole_numbers(state.ids, (batch, total), -1, vocabulary), "token ids")
    _require_positions(state.positions, batch, total)
    for name, tensor in own.items():
        fits = tensor.dim() == 3 and tensor.shape[0] == batch and tensor.shape[1] == state.geometry.kv_heads
        _need(fits and tensor.is_floating_point() and tensor.shape[2] <= total, f"own tensor {name}")


def _require_group(group: GroupTokens, g: CacheGeometry, dtype: torch.dtype, batch: int) -> None:
    for value in (group.first, group.recent_from):
        _need(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31, "a group's first tokens")
    _need(isinstance(group.recording, bool) and len(group.sequences) == batch, "a group's rows")
    described = {tuple((b.start, b.tokens) for b in row) for row in group.sequences}
    _need(len(described) == 1, "sequences with different blocks")
    blocks = group.sequences[0]
    sinks = SINKS if blocks and not group.first else 0
    _require_blocks(group, blocks)
    for layer in group.layers:
        _need(layer.is_initialized, "a layer without tokens")
        shape = layer.keys.shape
        _need(len(shape) == 4 and tuple(shape[:2]) == (batch, g.kv_heads) and shape[3] == g.head_dim, "keys")
        _need(layer.values.shape == shape and layer.values.dtype == layer.keys.dtype == dtype, "values")
        for sink in (layer.sink_keys, layer.sink_values):
            _need(tuple(sink.shape) == (batch, g.kv_heads, sinks, g.head_dim) and sink.dtype == dtype, "sinks")
        if layer.received is not None:
            wanted = (batch, g.heads, shape[2])
            _need(tuple(layer.received.shape) == wanted and layer.received.dtype == torch.float32, "attention received")


def _require_blocks(group: GroupTokens, blocks: Sequence[StoredBlock]) -> None:
    at = max(SINKS, group.first) if not group.first else group.first
    for block in blocks:
        ends = group.next_stop(block.start)
        _need(
            block.start == at and (block.stop == ends or (block is blocks[-1] and block.stop < ends)),
            "blocks with gaps",
        )
        at = block.stop
    _need(group.recent_from == at if blocks else group.recent_from == group.first, "blocks and recent tokens")
    _need(group.coded or not blocks, "blocks of layers that keep none")


def _require_positions(positions: Any, batch: int, total: int) -> None:
    ids, which, states = positions.ids, positions.which, positions.frequencies
    if ids is not None:
        _need(ids.dim() == 3 and _whole_numbers(ids, (ids.shape[0], batch, total), -(2**31), 2**31), "positions")
    _need((which is None) == (not states), "rotary frequencies")
    if which is not None:
        _need(_whole_numbers(which, (total,), 0, len(states)), "rotary frequencies")
        _need(all(s.dim() == 1 and s.is_floating_point() for s in states), "rotary frequencies")


def _whole_numbers(tensor: Tensor, shape: tuple[int, ...], low: int, high: int) -> bool:
    if tuple(tensor.shape) != shape or tensor.dtype not in (torch.int32, torch.int64):
        return False
    return not tensor.numel() or (int(tensor.min()) >= low and int(tensor.max()) < high)


def _need(fits: bool, what: str) -> None:
    if not fits:
        raise InputError(f"{what} do not fit the rest of the saved cache")
