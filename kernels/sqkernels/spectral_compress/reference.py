"""Compression in plain torch."""

from __future__ import annotations

from torch import Tensor

from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.reference import write_page


def spectral_compress(keys: Tensor, values: Tensor, matrices: RowMatrices, storage: Tensor, pages: Tensor) -> None:
    """See `api.spectral_compress`."""
    missing = PAGE - keys.shape[2]
    for n, at in enumerate(pages.tolist()):
        block = [x[n].float().new_zeros(x.shape[1], PAGE, x.shape[3]) for x in (keys, values)]
        for whole, x in zip(block, (keys, values), strict=True):
            whole[:, missing:] = x[n].float()
        storage[at : at + matrices.layout.page_bytes] = write_page(*block, matrices)
