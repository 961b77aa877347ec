"""`compress_row`: coding one block of all layers, beside computing that block's prefill."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.bench.cell import Bench
from spectralquant.bench.device.timing import Timing, graph_time
from spectralquant.bench.inputs import random_matrices
from spectralquant.models.shapes import ModelShape
from spectralquant.results.speed import KernelRow
from sqkernels.common import PAGE, RowMatrices
from sqkernels.common.reference import read_planes
from sqkernels.spectral_compress import compress_traffic, spectral_compress

BATCHES = 4
ALLOWED = 0.002


def compress_row(bench: Bench) -> KernelRow:
    """Time of one launch set that codes 128 tokens of every layer of one sequence, and its share of their prefill."""
    shape, device = bench.shape, bench.matrices.device
    matrices = random_matrices(shape, bench.settings, device, layers=shape.layers)
    timing, wrong = compress_time(shape, matrices)
    row = bench.row("spectral_compress", 1, PAGE, timing, compress_traffic(matrices, PAGE))
    prefill = prefill_us(bench)
    row.error, row.error_limit, row.correct = wrong, ALLOWED, wrong <= ALLOWED
    if row.correct:
        row.prefill_us, row.share_of_prefill = prefill, timing.median / prefill
    return row


def compress_time(shape: ModelShape, matrices: RowMatrices) -> tuple[Timing, float]:
    """Time of coding 128 tokens of all heads of `matrices`, and the share of planes that are not the oracle's."""
    device = matrices.device
    size = (1, matrices.kv_heads, PAGE, shape.head_dim)
    sets = []
    for _ in range(BATCHES):
        keys, values = (torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(2))
        storage = torch.zeros(matrices.layout.page_bytes, dtype=torch.uint8, device=device)
        sets.append((keys, values, storage))
    where = torch.zeros(1, dtype=torch.int64, device=device)
    run = lambda s: spectral_compress(s[0], s[1], matrices, s[2], where, backend="triton")  # noqa: E731
    run(sets[0])
    wrong = _wrong_share(sets[0], matrices)
    return graph_time([lambda s=s: run(s) for s in sets]), wrong


def _wrong_share(block: tuple[Tensor, Tensor, Tensor], matrices: RowMatrices) -> float:
    """Share of planes that differ from the oracle's in float64 (values on the border between two codes may)."""
    different = total = 0
    for kind, x, m in ((0, block[0], matrices.key), (1, block[1], matrices.value)):
        component, _, widths = matrices.layout.plane_table(kind)
        used = (component >= 0).to(x.device)
        wide = torch.pow(2, widths.to(x.device)) - 1
        centre = torch.tensor([0.0, 0.5, 1.5, 0.0, 8.0], device=x.device)[widths.to(x.device)]
        got = read_planes(block[2][None], matrices, kind) + centre[:, None]
        y = x[0].double() @ m.encode.double() + m.offset.double()[:, None]
        codes = torch.minimum(y.round().clamp(min=0), m.top.double()[:, None]).long()
        want = (codes >> m.shift[:, None].long()) & wide[:, None]
        wrong = (got.long() != want) & used[:, None]
        different, total = different + int(wrong.sum()), total + int(used.sum()) * PAGE
    return different / total


def prefill_us(bench: Bench) -> float:
    """Microseconds of a 128-token block's linear layers, all layers (attention left out, so a lower bound)."""
    shape, device = bench.shape, bench.matrices.device
    width = shape.heads * shape.head_dim
    qkv = width + 2 * shape.kv_heads * shape.head_dim
    sizes = [
        (shape.hidden, qkv),
        (width, shape.hidden),
        (shape.hidden, 2 * shape.intermediate),
        (shape.intermediate, shape.hidden),
    ]
    layers = [
        [torch.randn(s, device=device, dtype=torch.bfloat16) * s[0] ** -0.5 for s in sizes] for _ in range(BATCHES)
    ]
    inputs = [torch.randn(PAGE, s[0], device=device, dtype=torch.bfloat16) for s in sizes]
    calls = [lambda layer=layer: [x @ w for x, w in zip(inputs, layer, strict=True)] for layer in layers]
    return graph_time(calls).median * shape.layers
