"""`TokenFeatures`: what token ids say about keys and values before any is looked at.

A key of layer 0 is a function of its token alone, and much of the deeper layers' keys and values still is a linear
function of the embeddings of the token and its predecessor. The ids are known wherever a cache is used (and cost two
bytes a token in a packet), so the codec subtracts that prediction and codes the rest. This is the road "layer-0 keys
and values recomputed from token ids" of method.md section 7, taken to all layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_DIMS = 768


class TokenFeatures:
    """Features `[T, 2·d]` of token ids: normalized (projected) embeddings of the token and of its predecessor."""

    def __init__(self, embedding: Tensor, projection: Tensor | None = None) -> None:
        """`embedding: [vocabulary, hidden]` of the model; `projection: [hidden, d]` where hidden is large."""
        self.embedding = embedding.detach()
        self.projection = projection
        self.dims = embedding.shape[1] if projection is None else projection.shape[1]

    @property
    def width(self) -> int:
        return 2 * self.dims

    def __call__(self, ids: Tensor, previous_id: int) -> Tensor:
        """Float32 features of `ids: [T]` that follow `previous_id` (−1, here and in `ids`: unknown, features zero)."""
        ids = ids.to(self.embedding.device)
        own = self._embed(ids)
        before = torch.zeros_like(own)
        before[1:] = own[:-1]
        if previous_id >= 0:
            before[:1] = self._embed(ids.new_tensor([previous_id]))
        return torch.cat([own, before], dim=1)

    def _embed(self, ids: Tensor) -> Tensor:
        rows = self.embedding[ids.clamp_min(0)].float() * (ids >= 0)[:, None]
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * rows.shape[1] ** 0.5
        return rows if self.projection is None else rows @ self.projection.to(rows)


def embedding_projection(embedding: Tensor) -> Tensor | None:
    """The leading 768 principal directions of normalized embeddings `[hidden, 768]`, or None where hidden is less."""
    if embedding.shape[1] <= MAX_DIMS:
        return None
    rows = embedding.detach().float()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    return vectors[:, -MAX_DIMS:].flip(1).float().contiguous()
