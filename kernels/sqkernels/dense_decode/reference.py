"""Dense decode attention in plain torch, in any precision."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_decode(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """See `api.dense_decode`; computed in `dtype`."""
    batch, kv, _, dim = keys.shape
    grouped = query.to(dtype).view(batch, kv, -1, dim)
    p = (grouped @ keys.to(dtype).transpose(2, 3) * scaling).softmax(-1)
    return (p @ values.to(dtype)).view(query.shape).to(query.dtype if dtype == torch.float32 else dtype)
