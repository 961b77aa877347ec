"""The same in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.reference import write_page


def spectral_slots(
    keys: Tensor, values: Tensor, matrices: RowMatrices, pages: Tensor, slots: Tensor, exact: int
) -> None:
    """See `api.spectral_slots`."""
    written = slots >= 0
    keys, values, slots = keys[written], values[written], slots[written]
    page, place = slots // PAGE, slots % PAGE
    for start in range(0, len(slots), PAGE):
        some = slice(start, min(start + PAGE, len(slots)))
        block = [x.new_zeros(x.shape[1], PAGE, x.shape[2], dtype=torch.float32) for x in (keys, values)]
        count = some.stop - start
        for whole, x in zip(block, (keys, values), strict=True):
            whole[:, :count] = x[some].float().transpose(0, 1)
        coded = write_page(*block, matrices)
        for at, nbytes in zip(matrices.layout.row_offsets, matrices.layout.row_bytes, strict=True):
            rows = coded[at : at + count * nbytes].view(count, nbytes)
            column = at + place[some, None] * nbytes + torch.arange(nbytes, device=pages.device)
            pages[page[some, None], column] = rows
    first, dim = matrices.layout.page_bytes, matrices.head_dim
    early = place < exact
    for kind, x in enumerate((keys, values)):
        numbers = x[early].contiguous().view(torch.uint8).flatten(1, 2).view(-1, matrices.kv_heads, 2 * dim)
        head = torch.arange(matrices.kv_heads, device=pages.device)[None, :, None]
        byte = torch.arange(2 * dim, device=pages.device)[None, None, :]
        row = (kind * matrices.kv_heads + head) * exact + place[early, None, None]
        pages[page[early, None, None], first + 2 * dim * row + byte] = numbers
