"""`hf_quantized`: transformers' own `QuantizedCache` layers, with the quanto or the hqq backend.

A block's keys (after RoPE, as that cache holds them) and values go through the layer's `_quantize` and `_dequantize`, so
what comes back is bit for bit what transformers would read.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import HQQQuantizedLayer, QuantizedLayer, QuantoQuantizedLayer

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.errors import InputError
from spectralquant.methods.entry import plain

BACKENDS = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}


@dataclass(frozen=True)
class _Coded:
    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    block: KVBlock
    nbytes: int


@dataclass(frozen=True)
class HfQuantized:
    """backend: quanto (2 or 4 bits) or hqq (1, 2, 3, 4 or 8). group: `q_group_size`."""

    backend: str = "quanto"
    bits: int = 4
    group: int = 64

    name: ClassVar[str] = "hf_quantized"
    exact_bits: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise InputError(f"hf_quantized: backend={self.backend!r} is not one of {', '.join(BACKENDS)}.")
        allowed = (2, 4) if self.backend == "quanto" else (1, 2, 3, 4, 8)
        if self.bits not in allowed:
            raise InputError(f"hf_quantized: bits={self.bits} is not one of {allowed} ({self.backend}).")

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self)

    def layer(self) -> QuantizedLayer:
        """A layer as transformers makes it, with its default axes.

        Raises:
            InputError: the backend's package is not installed.
        """
        module, package = BACKENDS[self.backend]
        if importlib.util.find_spec(module.split(".")[0]) is None:
            raise InputError(f"hf_quantized: the {self.backend} backend needs the package {package}; install it.")
        kind = QuantoQuantizedLayer if self.backend == "quanto" else HQQQuantizedLayer
        return kind(nbits=self.bits, q_group_size=self.group)

    def encode(self, block: KVBlock) -> _Coded:
        """Quantize a block, layer by layer."""
        keys, values, size = [], [], 0
        rotated = rotate_block_keys(block, block.keys)
        for i in range(rotated.shape[1]):
            layer = self.layer()
            for x, axis, out in ((rotated, layer.axis_key, keys), (block.values, layer.axis_value, values)):
                tensor = x[:, i].transpose(0, 1)[None].contiguous()
                layer.keys = tensor
                out.append((layer, layer._quantize(tensor, axis)))
                size += _bytes(out[-1][1])
        return _Coded(tuple(keys), tuple(values), block, size)

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values."""
        both = []
        for parts in (encoded.keys, encoded.values):
            layers = [layer._dequantize(coded)[0].transpose(0, 1).float() for layer, coded in parts]
            both.append(torch.stack(layers, dim=1))
        return unrotate_block_keys(encoded.block, both[0]), both[1]


def _bytes(coded: Any) -> int:
    """Bytes of every tensor inside a quantized tensor: codes, scales, zero points."""
    if isinstance(coded, tuple):
        return sum(_bytes(part) for part in coded)
    if isinstance(coded, dict):
        return sum(_bytes(part) for part in coded.values())
    inner = [getattr(coded, name) for name in ("_data", "_scale", "_shift") if hasattr(coded, name)]
    if inner:
        return sum(_bytes(t) for t in inner)
    return coded.untyped_storage().nbytes() if isinstance(coded, Tensor) else 0


METHOD = plain(HfQuantized, "transformers' QuantizedCache", "transformers", ({"bits": 4}, {"bits": 2}))
