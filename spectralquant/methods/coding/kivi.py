"""`kivi`: keys by channel, values by token, asymmetric (Liu et al. 2024, "KIVI", arXiv 2402.02750, section 4).

Keys (after RoPE, as KIVI caches them) share scale and zero point among `group` tokens of one channel, values among
`group` channels of one token; both are stored in float16. Tokens that do not fill a group wait in full precision.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.errors import InputError
from spectralquant.methods.entry import plain
from sqkernels.bitpack import pack_codes, unpack_codes


@dataclass(frozen=True)
class _Grouped:
    """Packed codes, scale and zero point of groups along the last dimension."""

    packed: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.packed.numel() + 2 * (self.scale.numel() + self.zero.numel())

    def values(self) -> Tensor:
        widths = torch.full((self.shape[-1],), self.bits, dtype=torch.uint8)
        codes = unpack_codes(self.packed, widths).view(self.shape).float()
        return codes * self.scale.float() + self.zero.float()


def quantize_groups(x: Tensor, bits: int) -> _Grouped:
    """Asymmetric round-to-nearest over the last dimension of `x: […, group]`."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-7).half()
    zero = low.half()
    codes = ((x - zero.float()) / scale.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)
    widths = torch.full((x.shape[-1],), bits, dtype=torch.uint8)
    return _Grouped(pack_codes(codes.reshape(-1, x.shape[-1]), widths), scale, zero, bits, tuple(x.shape))


@dataclass(frozen=True)
class _Coded:
    keys: _Grouped | None
    rest: Tensor
    values: _Grouped
    block: KVBlock

    @property
    def nbytes(self) -> int:
        key_bytes = 0 if self.keys is None else self.keys.nbytes
        return key_bytes + 2 * self.rest.numel() + self.values.nbytes


@dataclass(frozen=True)
class Kivi:
    """bits: 2 or 4 (any from 1 to 8 works). group: 32 in the paper."""

    bits: int = 2
    group: int = 32

    name: ClassVar[str] = "kivi"
    exact_bits: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise InputError(f"kivi: bits={self.bits} is outside 1 to 8.")
        if self.group < 2:
            raise InputError(f"kivi: group={self.group} must be at least 2.")

    @property
    def options(self) -> dict[str, Any]:
        return asdict(self)

    def encode(self, block: KVBlock) -> _Coded:
        """Quantize a block."""
        keys = rotate_block_keys(block, block.keys)
        tokens, layers, heads, dim = keys.shape
        if dim % self.group:
            raise InputError(f"kivi: group={self.group} does not divide the head dimension {dim}.")
        whole = tokens // self.group * self.group
        grouped = None
        if whole:
            by_channel = keys[:whole].view(-1, self.group, layers, heads, dim).permute(0, 2, 3, 4, 1)
            grouped = quantize_groups(by_channel.contiguous(), self.bits)
        values = quantize_groups(block.values.reshape(tokens, layers, heads, -1, self.group), self.bits)
        return _Coded(grouped, keys[whole:].half(), values, block)

    def decode(self, encoded: _Coded) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values."""
        parts = [encoded.rest.float()]
        if encoded.keys is not None:
            by_token = encoded.keys.values().permute(0, 4, 1, 2, 3)
            parts.insert(0, by_token.flatten(0, 1))
        values = encoded.values.values().flatten(3)
        return unrotate_block_keys(encoded.block, torch.cat(parts)), values


METHOD = plain(Kivi, "keys by channel, values by token", "arXiv 2402.02750", ({"bits": 4}, {"bits": 3}, {"bits": 2}))
