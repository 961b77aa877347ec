"""What reconstruction reads and writes."""

from __future__ import annotations

from sqkernels.common.layout import PAGE
from sqkernels.common.matrices import RowMatrices
from sqkernels.common.traffic import Arguments, slots, tensor_bytes

READ = ("PAGES", "HEADS", "KEY_DECODE", "KEY_CONSTANT", "VALUE_DECODE", "VALUE_CONSTANT", "COS", "SIN")


def reconstruct_bytes(arguments: Arguments) -> int:
    """Of `reconstruct_kernel`: codes, matrices and, where keys are turned, cosines and sines read; keys and values written."""
    return slots(arguments) * arguments["token_bytes"] + tensor_bytes(arguments, *READ, "OUT_K", "OUT_V")


def reconstruct_traffic(matrices: RowMatrices, tokens: int, element: int = 2) -> dict[str, int]:
    """Bytes read and written, and flops, for `tokens` tokens (whole pages) of one layer, keys left as they were coded.

    The same count as the kernel's `launch_metadata`.
    """
    heads, dim, layout = matrices.kv_heads, matrices.head_dim, matrices.layout
    pages = -(-tokens // PAGE)
    codes = pages * PAGE * (sum(layout.row_bytes) + 2 * heads * dim * element)
    decoders = heads * dim * (2 * sum(layout.planes) + 2 * 4)
    tables = 8 * pages + matrices.heads.numel() * 4
    return {"bytes": codes + decoders + tables, "flops": 2 * tokens * heads * dim * sum(layout.planes)}
