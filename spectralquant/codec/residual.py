"""`TurboQuantResidual`: the layered mode. Base layer spectral, enhancement layer TurboQuant of what it missed.

method.md section 3. Each block keeps whichever of {spectral, turboquant, layered} it is told to, or in mode `auto` the
one of least error, so the error never exceeds the smaller of the two single codecs' (tested as a property). The error
is the plain squared norm over keys (after RoPE) and values unless a weighted one is given.

Bytes: mode u8, base length u32, base bytes (a coded block, empty for turboquant alone), then, unless the mode is
spectral, float16 norms and packed codes of all vectors, keys first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import RotaryBlock, rotate_block_keys, unrotate_block_keys
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.turboquant import TurboCodes, TurboQuantizer
from spectralquant.errors import InputError, PacketError

MODES = ("spectral", "turboquant", "layered")
HEAD = struct.Struct("<BI")

ErrorMeasure = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class _Candidate:
    mode: int
    data: bytes
    error: float


class TurboQuantResidual:
    """Encoder and decoder of layered blocks.

    `error(key_error, value_error)` measures differences `[T, L, Hk, D]` (keys before RoPE); default: squared L2 norm.
    """

    def __init__(
        self, base: SpectralCodec, bits: int = 4, mode: str = "auto", seed: int = 0, error: ErrorMeasure | None = None
    ) -> None:
        if mode not in (*MODES, "auto"):
            raise InputError(f"mode {mode!r} is not one of auto, {', '.join(MODES)}.")
        self.base, self.mode = base, mode
        self.turbo = TurboQuantizer(base.geometry.head_dim, bits, seed)
        self.error = error or (lambda k, v: float(k.double().square().sum() + v.double().square().sum()))

    def encode(self, block: KVBlock) -> bytes:
        """Bytes of a block in the chosen mode."""
        return min(self._candidates(block), key=lambda c: (c.error, len(c.data))).data

    def errors(self, block: KVBlock) -> dict[str, float]:
        """Error of every mode on a block."""
        return {MODES[c.mode]: c.error for c in self._candidates(block, every=True)}

    def decode(self, data: bytes, tables: RotaryBlock) -> tuple[Tensor, Tensor]:
        """Keys (before RoPE) and values `[T, L, Hk, D]`; `tables` are the block's rotary tables.

        Raises:
            PacketError: damaged bytes.
        """
        if len(data) < HEAD.size:
            raise PacketError("A layered block is shorter than its header.")
        mode, length = HEAD.unpack_from(data)
        if mode >= len(MODES) or HEAD.size + length > len(data):
            raise PacketError("A layered block contradicts its size.")
        g = self.base.geometry
        base = None
        if mode != MODES.index("turboquant"):
            base = self.base.decode(data[HEAD.size : HEAD.size + length])
        if mode == MODES.index("spectral"):
            return base
        rest = data[HEAD.size + length :]
        per_token = 2 * g.layers * g.kv_heads
        row = -(-self.turbo.bits * g.head_dim // 8)
        vectors, left = divmod(len(rest), row + 2)
        if left or vectors % per_token:
            raise PacketError("A layered block's enhancement has a wrong length.")
        norms = torch.from_numpy(np.frombuffer(rest, np.float16, vectors).copy())
        codes = torch.from_numpy(np.frombuffer(rest, np.uint8, offset=2 * vectors).copy()).view(vectors, row)
        both = self.turbo.decode(TurboCodes(codes, norms)).to(self.base.device)
        keys, values = both.view(2, -1, g.layers, g.kv_heads, g.head_dim)
        keys = unrotate_block_keys(tables, keys)
        return (keys, values) if base is None else (base[0] + keys, base[1] + values)

    def _candidates(self, block: KVBlock, *, every: bool = False) -> list[_Candidate]:
        wanted = MODES if every or self.mode == "auto" else (self.mode,)
        base_data = base = None
        if set(wanted) & {"spectral", "layered"}:
            base_data = self.base.encode(block)
            base = self.base.decode(base_data)
        out = []
        for name in wanted:
            mode = MODES.index(name)
            body = HEAD.pack(mode, 0 if name == "turboquant" else len(base_data))
            if name != "turboquant":
                body += base_data
            if name != "spectral":
                body += self._enhance(block, base if name == "layered" else None)
            keys, values = self.decode(body, block)
            error = self.error(keys.to(block.keys) - block.keys, values.to(block.values) - block.values)
            out.append(_Candidate(mode, body, error))
        return out

    def _enhance(self, block: KVBlock, base: tuple[Tensor, Tensor] | None) -> bytes:
        keys, values = block.keys, block.values
        if base is not None:
            keys, values = keys - base[0].to(keys), values - base[1].to(values)
        both = torch.stack([rotate_block_keys(block, keys), values])
        coded = self.turbo.encode(both.reshape(-1, both.shape[-1]))
        return coded.norms.cpu().numpy().tobytes() + coded.codes.cpu().numpy().tobytes()
