"""Compression in plain torch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from sqkernels.common.layout import PAGE, RowLayout
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.reference import write_page


def spectral_compress(keys: Tensor, values: Tensor, matrices: RowMatrices, storage: Tensor, pages: Tensor) -> None:
    """See `api.spectral_compress`. Heads of a page that `matrices` are not for stay as they are."""
    missing = PAGE - keys.shape[2]
    for n, at in enumerate(pages.tolist()):
        block = [x[n].float().new_zeros(x.shape[1], PAGE, x.shape[3]) for x in (keys, values)]
        for whole, x in zip(block, (keys, values), strict=True):
            whole[:, missing:] = x[n].float()
        page = write_page(*block, matrices)
        for first, last in _written(matrices.layout):
            storage[at + first : at + last] = page[first:last]


def _written(layout: RowLayout) -> Iterator[tuple[int, int]]:
    """First byte and one past the last of every head's rows and index in a page."""
    for head, nbytes in enumerate(layout.row_bytes):
        yield layout.row_offsets[head], layout.row_offsets[head] + PAGE * nbytes
        if layout.index_bytes:
            yield layout.index_offsets[head], layout.index_offsets[head] + PAGE * layout.index_bytes
