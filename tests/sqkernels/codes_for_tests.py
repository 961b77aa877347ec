"""Random linear codes, pages and exact tokens."""

from __future__ import annotations

import torch

from sqkernels.common import PAGE, ExactTokens, LinearCode, RowMatrices, RowPages
from sqkernels.common.reference import write_page

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def linear_code(dim: int, bits: list[int], generator: torch.Generator) -> LinearCode:
    """An orthonormal basis with decaying steps, ±2.5 standard deviations wide."""
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0][: len(bits)]
    widths = torch.tensor(bits, dtype=torch.uint8)
    deviation = 2.0 / torch.arange(1, len(bits) + 1) ** 0.5
    step = 5 * deviation / (2.0 ** widths.float() - 1).clamp(min=1)
    mean = torch.randn(dim, generator=generator)
    low = -2.5 * deviation
    encode = basis / step[:, None]
    return LinearCode(widths, encode, -(encode @ mean) - low / step, basis * step[:, None], mean + low @ basis)


def matrices_for(kv: int, dim: int, bits, *, index: int = 0, seed: int = 0, align: int = 4, device: str = DEVICE):
    """`bits` is a list of widths, or one list a head as (keys, values)."""
    generator = torch.Generator().manual_seed(seed)
    per_head = bits if isinstance(bits[0], tuple) else [(bits, bits)] * kv
    keys = [linear_code(dim, list(k), generator) for k, _ in per_head]
    values = [linear_code(dim, list(v), generator) for _, v in per_head]
    found = [linear_code(dim, [4] * index, generator) for _ in per_head] if index else None
    return RowMatrices.build(keys, values, found, align=align, device=device)


def pages_for(
    matrices: RowMatrices, tokens: list[int], *, first: int = 0, seed: int = 1, holes: bool = True
) -> RowPages:
    """Random keys and values of `tokens` tokens a sequence, written by the reference; pages lie out of order."""
    generator = torch.Generator().manual_seed(seed)
    count = max(1, max(-(-(first + t) // PAGE) for t in tokens))
    kv, dim = matrices.kv_heads, matrices.head_dim
    order = torch.randperm(len(tokens) * count, generator=generator) if holes else torch.arange(len(tokens) * count)
    nbytes = matrices.layout.page_bytes
    storage = torch.zeros(len(order), nbytes, dtype=torch.uint8, device=matrices.device)
    for place in order:
        x = torch.randn(2, kv, PAGE, dim, generator=generator).to(matrices.device)
        storage[place] = write_page(x[0], x[1], matrices)
    offsets = (order * nbytes).view(len(tokens), count).to(matrices.device)
    firsts = torch.full((len(tokens),), first, dtype=torch.int32, device=matrices.device)
    lengths = torch.tensor(tokens, dtype=torch.int32, device=matrices.device)
    return RowPages(storage.view(-1), offsets, firsts, lengths, matrices)


def exact_for(
    matrices: RowMatrices, batch: int, sinks: int, window: list[int] | int, dtype=torch.float16, seed: int = 2
):
    """Random sinks and window; unused places of the window are NaN."""
    generator = torch.Generator().manual_seed(seed)
    counts = [window] * batch if isinstance(window, int) else window
    shape = (batch, matrices.kv_heads, max(counts), matrices.head_dim)
    parts = [torch.randn(*shape[:2], sinks, shape[3], generator=generator).to(dtype) for _ in range(2)]
    recent = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]
    for x in recent:
        for row, count in enumerate(counts):
            x[row, :, count:] = float("nan")
    lengths = torch.tensor(counts, dtype=torch.int32)
    on = [p.to(matrices.device) for p in (*parts, *recent, lengths)]
    return ExactTokens(*on)


def query_for(matrices: RowMatrices, batch: int, group: int, dtype=torch.float16, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, matrices.kv_heads * group, matrices.head_dim, generator=generator).to(
        matrices.device, dtype
    )


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2 error; NaN counts as infinite."""
    error = float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    return error if error == error else float("inf")
