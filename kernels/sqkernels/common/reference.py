"""Rows in plain torch: what every kernel is held against."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.common.layout import PAGE, PER_UNIT, UNIT_BYTES, WIDTHS
from sqkernels.common.matrices import CENTRES, KindMatrices, RowMatrices
from sqkernels.common.pages import ExactTokens, RowPages


def planes_of(x: Tensor, kind: KindMatrices) -> Tensor:
    """Codes of `x: [Hk, T, D]` shifted to their planes, int64 `[Hk, T, n]` (not yet masked to the planes' widths)."""
    encode, offset, top, shift = (t.to(x.device) for t in (kind.encode, kind.offset, kind.top, kind.shift))
    codes = torch.minimum((x.to(encode.dtype) @ encode + offset[:, None]).round().clamp(min=0), top[:, None]).long()
    return codes >> shift[:, None].long()


def round_trip(x: Tensor, matrices: RowMatrices, kind: int) -> Tensor:
    """Keys (0) or values (1) `x: [Hk, T, D]` after coding, without packing them."""
    own = (matrices.key, matrices.value)[kind]
    widths = matrices.layout.plane_table(kind)[2].to(x.device)
    planes = (planes_of(x, own) & ((1 << widths) - 1)[:, None]).to(x.dtype)
    return (planes - _centres(widths).to(x.dtype)[:, None]) @ own.decode.to(x.dtype) + own.constant.to(x.dtype)[:, None]


def write_page(keys: Tensor, values: Tensor, matrices: RowMatrices) -> Tensor:
    """Page uint8 `[page_bytes]` of `keys, values: [Hk, 128, D]`."""
    both = [planes_of(x, kind) for x, kind in ((keys, matrices.key), (values, matrices.value))]
    page = _pack_planes(both, matrices)
    _write_index(page, keys, matrices)
    return page


def _write_index(page: Tensor, keys: Tensor, matrices: RowMatrices) -> None:
    """Fill in the index of a page, where it has one, from `keys: [Hk, 128, D]`."""
    if matrices.index is None:
        return
    half = matrices.layout.index_bytes
    codes = planes_of(keys, matrices.index)
    for h, start in enumerate(matrices.layout.index_offsets):
        packed = (codes[h, :, :half] | codes[h, :, half:] << 4).to(torch.uint8)
        page[start : start + half * PAGE] = packed.reshape(-1)


def _pack_planes(both: list[Tensor], matrices: RowMatrices) -> Tensor:
    """Page of shifted codes `[Hk, 128, planes]` of keys and of values; its index is zero."""
    layout = matrices.layout
    page = torch.zeros(layout.page_bytes, dtype=torch.uint8, device=both[0].device)
    for h, bands in enumerate(layout.heads):
        start = layout.row_offsets[h]
        rows = page[start : start + PAGE * layout.row_bytes[h]].view(PAGE, -1)
        at = 0
        for kind in (0, 1):
            column = 0
            for i, (width, padded, nbytes) in enumerate(
                zip(WIDTHS, layout.padded[kind], bands[kind].nbytes, strict=True)
            ):
                size, units = UNIT_BYTES[i], nbytes // UNIT_BYTES[i]
                for j in range(PER_UNIT[i]):
                    first, byte = column + j * padded, j * width // 8
                    planes = both[kind][h, :, first : first + units] & (2**width - 1)
                    rows[:, at + byte : at + nbytes : size] |= (planes << (j * width % 8)).to(torch.uint8)
                column += padded * PER_UNIT[i]
                at += nbytes
    return page


def page_codes(page: Tensor, matrices: RowMatrices) -> tuple[list[Tensor], list[Tensor]]:
    """Codes uint8 `[128, R]` of every head's keys and values in a page."""
    out: tuple[list[Tensor], list[Tensor]] = ([], [])
    for kind in (0, 1):
        component, shift, widths = (t.to(page.device) for t in matrices.layout.plane_table(kind))
        planes = read_planes(page[None], matrices, kind) + _centres(widths)[:, None]
        for h, rank in enumerate(matrices.layout.ranks[kind]):
            used = component[h] >= 0
            codes = torch.zeros(PAGE, rank, dtype=torch.int64, device=page.device)
            codes.index_add_(1, component[h][used], planes[h][:, used].long() << shift[h][used])
            out[kind].append(codes.to(torch.uint8))
    return out


def page_of_codes(keys: list[Tensor], values: list[Tensor], matrices: RowMatrices) -> Tensor:
    """Page uint8 `[page_bytes]` of codes uint8 `[128, R]` a head, on the CPU; the index is made from what they decode to."""
    both = []
    for kind, codes in enumerate((keys, values)):
        component, shift, _ = matrices.layout.plane_table(kind)
        planes = torch.zeros(len(codes), PAGE, component.shape[1], dtype=torch.int64)
        for h, of_head in enumerate(codes):
            used = component[h] >= 0
            planes[h][:, used] = of_head.long()[:, component[h][used]] >> shift[h][used]
        both.append(planes)
    page = _pack_planes(both, matrices)
    _write_index(page, read_dense(page[None], matrices)[0], matrices)
    return page


def _centres(widths: Tensor) -> Tensor:
    """Centre of every plane column, float32 like `widths`."""
    out = torch.zeros(widths.shape, dtype=torch.float32, device=widths.device)
    for width, centre in CENTRES.items():
        out[widths == width] = centre
    return out


def read_planes(pages: Tensor, matrices: RowMatrices, kind: int) -> Tensor:
    """Centred planes of `pages: uint8 [N, page_bytes]`: float32 `[Hk, N·128, planes]`; padded columns are 0."""
    layout = matrices.layout
    out = torch.zeros(
        len(layout.heads), len(pages) * PAGE, layout.planes[kind], dtype=torch.float32, device=pages.device
    )
    for h, bands in enumerate(layout.heads):
        start = layout.row_offsets[h]
        rows = pages[:, start : start + PAGE * layout.row_bytes[h]].reshape(len(pages) * PAGE, -1)
        at = bands[0].row_bytes if kind else 0
        column = 0
        for i, (width, padded, nbytes) in enumerate(zip(WIDTHS, layout.padded[kind], bands[kind].nbytes, strict=True)):
            size, units = UNIT_BYTES[i], nbytes // UNIT_BYTES[i]
            for j in range(PER_UNIT[i]):
                first, byte = column + j * padded, j * width // 8
                planes = (rows[:, at + byte : at + nbytes : size] >> (j * width % 8)) & (2**width - 1)
                out[h, :, first : first + units] = planes.float() - CENTRES[width]
            column += padded * PER_UNIT[i]
            at += nbytes
    return out


def read_dense(pages: Tensor, matrices: RowMatrices, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Keys and values `[Hk, N·128, D]` of `pages: uint8 [N, page_bytes]`."""
    out = []
    for i, kind in enumerate((matrices.key, matrices.value)):
        planes = read_planes(pages, matrices, i).to(dtype)
        out.append(planes @ kind.decode.to(planes) + kind.constant.to(planes)[:, None])
    return out[0], out[1]


def read_index(pages: Tensor, matrices: RowMatrices) -> Tensor:
    """Index codes float32 `[Hk, N·128, rank]`, 0 to 15."""
    layout = matrices.layout
    out = []
    for h in range(len(layout.heads)):
        start = layout.index_offsets[h]
        data = pages[:, start : start + layout.index_bytes * PAGE].reshape(-1, layout.index_bytes)
        out.append(torch.cat([data & 15, data >> 4], dim=1).float())
    return torch.stack(out)


def sequence_pages(pages: RowPages, row: int) -> Tensor:
    """The pages of one sequence, uint8 `[N, page_bytes]`."""
    span = torch.arange(pages.matrices.layout.page_bytes, device=pages.storage.device)
    return pages.storage[pages.pages[row][:, None] + span]


def coded_slots(pages: RowPages, row: int) -> slice:
    """Slots of one sequence's pages that hold tokens."""
    first = int(pages.first[row])
    return slice(first, first + int(pages.tokens[row]))


def exact_tokens(exact: ExactTokens, row: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sinks and window of one sequence, `[Hk, E, D]`."""
    count = exact.window_keys.shape[2] if exact.tokens is None else int(exact.tokens[row])
    keys = torch.cat([exact.sink_keys[row], exact.window_keys[row, :, :count]], dim=1)
    values = torch.cat([exact.sink_values[row], exact.window_values[row, :, :count]], dim=1)
    return keys.to(dtype), values.to(dtype)
