"""Bounded blocks back to coefficients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.coefficients import BlockCoefficients, SecondStage
from spectralquant.codec.cold.complement import bounded_block, turbo
from spectralquant.codec.cold.complement.first_stage import FirstStage
from spectralquant.codec.cold.complement.heads import WeightedHeads
from spectralquant.codec.cold.importance import class_step
from spectralquant.codec.cold.symbols import SHIFTS
from spectralquant.streams import use_here


def read_bounded(codec: FirstStage, data: bytes | memoryview) -> BlockCoefficients:
    """Coefficients of both stages.

    Raises:
        PacketError: damaged bytes.
    """
    parts = bounded_block.split(data)
    first = codec.coder.decode([rans_block.split(parts.first, codec.coder.ranks, len(SHIFTS))])
    scale = bounded_block.octaves(parts.scale)[1]
    base = codec.dequantized(first, scale)
    if parts.stage == bounded_block.ALONE:
        return base
    g = codec.geometry
    if parts.stage == bounded_block.TURBO:
        residual = turbo.decode(parts.rest, parts.second, parts.tokens, g).to(codec.device)
        stages = [
            (residual[kind, :, layer].transpose(0, 1), kind, layer) for kind in range(2) for layer in range(g.layers)
        ]
        return replace(base, extra=tuple(SecondStage(0, kind, layer, y, None) for y, kind, layer in stages))
    symbols = codec.complement.decode(parts.rest, parts.tokens)
    factor = codec.step_scale * scale * 2.0 ** (parts.second / bounded_block.EIGHTHS)
    return replace(base, extra=_stages(codec, codec.complement_heads, symbols, class_step(first.classes) * factor))


def _stages(codec: FirstStage, heads: WeightedHeads, symbols: Tensor, steps: Tensor) -> tuple[SecondStage, ...]:
    """Second stages of the layers that have any symbol; symbols `[H·D, T]`, steps `[T, 2]`."""
    g = codec.geometry
    shape = (2, g.layers, g.kv_heads, g.head_dim, -1)
    live = symbols.view(2, g.layers, -1).any(2)
    values = codec.complement.values(symbols, heads.kind_steps(steps)).view(shape)
    use_here(heads.synthesis)
    back = heads.synthesis.transpose(-1, -2)
    return tuple(
        SecondStage(0, kind, layer, values[kind, layer].transpose(-1, -2).to(torch.float32), back[kind, layer])
        for kind, layer in torch.nonzero(live).tolist()
    )
