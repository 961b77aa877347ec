"""`TokenFeatures`: what token ids say about keys and values before any is looked at.

A key of layer 0 is a function of its token alone, and much of the deeper layers' keys and values still is a linear
function of the embeddings of the token and its predecessor. The ids are known wherever a cache is used (and cost two
bytes a token in a packet), so the codec subtracts that prediction and codes the rest. This is the road "layer-0 keys
and values recomputed from token ids" of method.md section 7, taken to all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectralquant.codec.buffers import empty_floats
from spectralquant.streams import to_device

MAX_DIMS = 768


@dataclass(frozen=True)
class TokenRows:
    """Features of T tokens that share rows `[U + 1, d]`: each token's own and its predecessor's (the last row: zeros)."""

    rows: Tensor
    own: Tensor
    before: Tensor

    def part(self, first: int, last: int) -> TokenRows:
        """Of tokens first … last."""
        return TokenRows(self.rows, self.own[first:last], self.before[first:last])

    def times(self, matrix: Tensor, plus: Tensor | None = None) -> TokenProducts:
        """Features `[T, 2·d]` @ matrix `[2·d, C]` (plus `[C]`), the products in the matrix's dtype."""
        dims = self.rows.shape[1]
        rows = self.rows.to(matrix.dtype)
        out = empty_floats(2, len(rows), matrix.shape[1], device=rows.device)
        for part, own in zip(out, (matrix[:dims], matrix[dims:]), strict=True):
            part.copy_(rows @ own)
        if plus is not None:
            out[0] += plus
        return TokenProducts(out.flatten(0, 1), torch.stack([self.own, self.before + len(rows)], dim=1))


@dataclass(frozen=True)
class TokenProducts:
    """Products of `TokenRows` with a matrix: float32 `[2·(U + 1), C]`, for tokens themselves and then as predecessors, and which two
    rows each token takes, `[T, 2]`."""

    rows: Tensor
    places: Tensor

    def sum(self, first: int, last: int) -> Tensor:
        """Of tokens first … last, `[n, C]`."""
        return torch.nn.functional.embedding_bag(self.places[first:last], self.rows, mode="sum")


class TokenFeatures:
    """Features `[T, 2·d]` of token ids: normalized (projected) embeddings of the token and of its predecessor."""

    def __init__(self, embedding: Tensor, projection: Tensor | None = None) -> None:
        """`embedding: [vocabulary, hidden]` of the model; `projection: [hidden, d]` where hidden is large."""
        self.embedding = embedding.detach()
        self.projection = None if projection is None else projection.to(embedding.device)
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

    def rows(self, blocks: Sequence[tuple[int, Tensor | np.ndarray]]) -> TokenRows:
        """The same features for blocks of (id before, ids `[T]`); ids that come again share a row.

        Raises:
            IndexError: an id that the model does not have.
        """
        device = self.embedding.device
        numbers = [ids.cpu().numpy() if torch.is_tensor(ids) else ids for _, ids in blocks]
        starts = np.cumsum([0, *(len(n) + 1 for n in numbers)])
        flat, first = np.empty(starts[-1], np.int64), np.zeros(starts[-1], bool)
        first[starts[:-1]] = True
        flat[first] = [before for before, _ in blocks]
        flat[~first] = np.concatenate([np.zeros(0, np.int64), *numbers])
        if flat.max(initial=-1) >= len(self.embedding):
            raise IndexError(f"id {flat.max()} is beyond the model's {len(self.embedding)}")
        unique, place = np.unique(flat, return_inverse=True)
        known = np.searchsorted(unique, 0)  # what is unknown takes the last row, of zeros
        place = np.where(flat >= 0, place - known, len(unique) - known)
        own = np.flatnonzero(~first)
        rows = self._embed(to_device([unique[known:]], device))
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        both = to_device([place[own], place[own - 1]], device)
        return TokenRows(rows, both[: len(own)], both[len(own) :])

    def _embed(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.embedding[ids.clamp_min(0)].float() * (ids >= 0)[:, None]
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * rows.shape[1] ** 0.5
        return rows if self.projection is None else rows @ self.projection.to(rows)


def embedding_projection(embedding: Tensor) -> Tensor | None:
    """The leading 768 principal directions of normalized embeddings `[hidden, 768]`, or None where hidden is less."""
    if embedding.shape[1] <= MAX_DIMS:
        return None
    rows = embedding.detach().float()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    vectors: Tensor = torch.linalg.eigh((rows.T @ rows).double()).eigenvectors
    return vectors[:, -MAX_DIMS:].flip(1).float().contiguous()
