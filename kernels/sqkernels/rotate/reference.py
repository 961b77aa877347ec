"""The same in torch."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `api.rotate`."""

    def turned(x: Tensor) -> Tensor:
        left, right = x.float().chunk(2, dim=-1)
        both = x.float() * cos.float()[:, None] + torch.cat([-right, left], dim=-1) * sin.float()[:, None]
        return both.to(x.dtype)

    return turned(query), turned(key)
