"""The same in torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu, silu


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """See `api.gated`."""
    x = gate.float()
    return ((silu(x) if activation == "silu" else gelu(x, approximate="tanh")) * up.float()).to(gate.dtype)
