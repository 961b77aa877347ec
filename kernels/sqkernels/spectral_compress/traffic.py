"""What compression reads and writes."""

from __future__ import annotations

from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.traffic import Arguments, tensor_bytes

ENCODERS = tuple(f"{kind}_{part}" for kind in ("KEY", "VALUE") for part in ("ENCODE", "OFFSET", "TOP", "SHIFT"))
INDEX_ENCODER = tuple(f"INDEX_{part}" for part in ("ENCODE", "OFFSET", "TOP", "SHIFT"))


def compress_bytes(arguments: Arguments) -> int:
    """Of `compress_kernel`: keys, values and encoders read, codes written."""
    tokens = arguments["K"].shape[0] * arguments["K"].shape[2]
    encoders = ENCODERS + (INDEX_ENCODER if arguments["ROLES"] == 3 else ())
    return tensor_bytes(arguments, "K", "V", "PAGES", "HEADS", *encoders) + tokens * arguments["token_bytes"]


def compress_traffic(matrices: RowMatrices, tokens: int, element: int = 2) -> dict[str, int]:
    """Bytes read and written, and flops, of compressing blocks of 128, `tokens` tokens in all, of the heads of `matrices`.

    The same count as the kernel's `launch_metadata`.
    """
    heads, dim, layout = matrices.kv_heads, matrices.head_dim, matrices.layout
    columns = sum(layout.planes) + layout.index_rank
    encoders = 4 * heads * columns * (dim + 3)
    tables = 8 * -(-tokens // PAGE) + matrices.heads.numel() * 4
    written = tokens * (sum(layout.row_bytes) + heads * layout.index_bytes)
    read = 2 * tokens * heads * dim * element + encoders + tables
    return {"bytes": read + written, "flops": 2 * tokens * heads * dim * columns}
