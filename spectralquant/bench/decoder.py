"""A decoder with random weights at a model's shape, one token a sequence: what surrounds attention in a decode step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu

from spectralquant.models.shapes import ModelShape

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RandomDecoder:
    """Llama's layer (RMSNorm, fused QKV, RoPE, attention, SwiGLU) in bfloat16; every layer has weights of its own."""

    def __init__(self, shape: ModelShape, device: torch.device, position: int) -> None:
        self.shape = shape
        width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) * columns**-0.5

        self.layers = [
            (
                weight(width + 2 * kv, shape.hidden),
                weight(shape.hidden, width),
                weight(2 * shape.intermediate, shape.hidden),
                weight(shape.hidden, shape.intermediate),
            )
            for _ in range(shape.layers)
        ]
        self.embedding, self.head = weight(shape.vocab, shape.hidden), weight(shape.vocab, shape.hidden)
        self.norm = torch.ones(shape.hidden, device=device, dtype=torch.bfloat16)
        frequencies = 5e5 ** (-torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim)
        angle = (position * frequencies).repeat(2)
        self.cos, self.sin = angle.cos().bfloat16(), angle.sin().bfloat16()

    def step(self, tokens: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """(next tokens `[B]`, logits `[B, V]`). attend(layer, query `[B, H, D]`, key and value `[B, Hk, D]`): `[B, H, D]`."""
        s = self.shape
        x = embedding(tokens, self.embedding)
        size = (s.hidden,)
        for layer, (qkv, out, gate_up, down) in enumerate(self.layers):
            mixed = linear(rms_norm(x, size, self.norm), qkv).view(len(x), s.heads + 2 * s.kv_heads, s.head_dim)
            turned = self._rope(mixed[:, : s.heads + s.kv_heads])
            read = attend(layer, turned[:, : s.heads], turned[:, s.heads :], mixed[:, s.heads + s.kv_heads :])
            x = x + linear(read.reshape(len(x), -1), out)
            gate, up = linear(rms_norm(x, size, self.norm), gate_up).chunk(2, dim=-1)
            x = x + linear(silu(gate) * up, down)
        logits = linear(rms_norm(x, size, self.norm), self.head)
        return logits.argmax(-1), logits

    def _rope(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-right, left], dim=-1) * self.sin
