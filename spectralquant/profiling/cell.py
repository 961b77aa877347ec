"""All kernels and baselines at one batch and context: checked, then timed, as result rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spectralquant.profiling.baselines import Dense
from spectralquant.profiling.inputs import SINKS, CodeSettings, Inputs, random_inputs
from spectralquant.profiling.peaks import Peaks
from spectralquant.profiling.shapes import ModelShape
from spectralquant.profiling.timing import Timing, graph_time, rotation
from sqkernels.dense_decode.reference import dense_decode as dense_reference
from sqkernels.rows import ExactTokens, RowMatrices, RowPages
from sqkernels.rows.reference import exact_tokens, read_dense, sequence_pages
from sqkernels.spectral_decode import decode_traffic, spectral_decode
from sqkernels.spectral_decode.reference import attend
from sqkernels.spectral_index_decode import index_traffic, select_tokens, spectral_index_decode
from sqkernels.spectral_index_decode.reference import attend_selected
from sqkernels.spectral_reconstruct import reconstruct_traffic, spectral_reconstruct

KERNELS = ("spectral_decode", "spectral_index_decode", "spectral_reconstruct", "spectral_compress")


@dataclass(frozen=True)
class Bench:
    """What every cell shares. device: its name. bits of `settings` are those of `matrices`."""

    shape: ModelShape
    matrices: RowMatrices
    settings: CodeSettings
    peaks: Peaks
    device: str

    def row(self, kernel: str, batch: int, context: int, timing: Timing, traffic: dict[str, int]) -> dict[str, Any]:
        """A result row of method.md section 6."""
        rate = traffic["bytes"] / timing.median / 1e6
        return {
            "kernel": kernel,
            "device": self.device,
            "batch": batch,
            "context": context,
            "kv_heads": self.shape.kv_heads,
            "group": self.shape.group,
            "head_dim": self.shape.head_dim,
            "time_us": timing.median,
            "time_spread": [timing.low, timing.high],
            "n": timing.n,
            "bytes_read": traffic["bytes"],
            "tb_per_s": rate,
            "peak_share": rate / self.peaks.copy_tb_per_s,
            "baseline": None,
            "baseline_time_us": None,
            "speedup": None,
        }


def dense_rows(bench: Bench, batch: int, context: int, baselines: dict[str, Dense]) -> list[dict[str, Any]]:
    """Dense decode attention by every baseline; one that does not run here, or is wrong, says so in its row."""
    shape, device = bench.shape, bench.matrices.device
    nbytes = 2 * batch * shape.kv_heads * shape.head_dim * 2 * context
    size = (batch, shape.kv_heads, context, shape.head_dim)
    sets = []
    for _ in range(rotation(nbytes, bench.peaks.cache, most=4)):
        query = torch.randn(batch, shape.heads, shape.head_dim, device=device, dtype=torch.bfloat16)
        sets.append((query, *(torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(2))))
    first = tuple(x[:1] for x in sets[0])
    want = dense_reference(*first, shape.head_dim**-0.5, torch.float64)
    rows = []
    for name, run in baselines.items():
        try:
            error = _error(run(*sets[0])[:1], want)
            timing = graph_time([lambda s=s, run=run: run(*s) for s in sets])
        except Exception as reason:  # any backend may refuse a shape or device in its own way
            rows.append(
                {"kernel": name, "batch": batch, "context": context, "failed": str(reason).strip().split("\n")[0][:160]}
            )
            continue
        row = bench.row(name, batch, context, timing, {"bytes": nbytes})
        rows.append(row | {"error": error, "correct": error <= 4 * torch.finfo(torch.bfloat16).eps})
    return rows


def spectral_rows(
    bench: Bench, batch: int, context: int, kernels: Sequence[str], dense: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Our kernels; a speed-up, over the fastest correct baseline, only where the check against float64 is green."""
    shape, settings = bench.shape, bench.settings
    coded = max(0, context - SINKS - settings.window)
    exact = context - coded
    selected = -(-int(coded * settings.share * 1000) // 1000)
    counted = {
        "spectral_decode": decode_traffic(bench.matrices, coded, exact, shape.group),
        "spectral_index_decode": index_traffic(bench.matrices, coded, exact, selected, shape.group),
        "spectral_reconstruct": reconstruct_traffic(bench.matrices, coded),
    }
    calls: dict[str, Callable[[Inputs], object]] = {
        "spectral_decode": lambda i: spectral_decode(i.query, i.pages, i.exact, backend="triton"),
        "spectral_index_decode": lambda i: spectral_index_decode(
            i.query, i.pages, i.exact, settings.share, backend="triton"
        ),
        "spectral_reconstruct": lambda i: spectral_reconstruct(
            i.pages.storage, i.pages.pages, bench.matrices, torch.bfloat16, backend="triton"
        ),
    }
    green = [r for r in dense if r.get("correct")]
    best = min(green, key=lambda r: r["time_us"], default=None)
    rows = []
    for name in (k for k in kernels if k in calls):
        traffic = {k: batch * v for k, v in counted[name].items()}
        held = batch * bench.matrices.layout.page_bytes * max(1, coded // 128)
        count = min(rotation(traffic["bytes"], bench.peaks.cache), max(1, int(12e9 // held)))
        sets = [random_inputs(shape, bench.matrices, batch, context, settings.window, seed) for seed in range(count)]
        error, limit = _check(name, sets[0], bench)
        timing = graph_time([lambda i=i, call=calls[name]: call(i) for i in sets])
        row = bench.row(name, batch, context, timing, traffic) | {"error": error, "correct": error <= limit}
        row |= {"bits": settings.bits, "input_sets": count}
        if name == "spectral_index_decode":
            row |= {"share": settings.share, "index_rank": settings.index_rank}
        if name != "spectral_reconstruct":
            row["bytes_share_of_dense"] = row["bytes_read"] / (4 * batch * shape.kv_heads * shape.head_dim * context)
            if best is not None and row["correct"]:
                row |= {
                    "baseline": best["kernel"],
                    "baseline_time_us": best["time_us"],
                    "speedup": best["time_us"] / timing.median,
                }
        rows.append(row)
        del sets
    return rows


def _check(name: str, inputs: Inputs, bench: Bench) -> tuple[float, float]:
    """Relative L2 error of the first sequence against float64, and what is allowed: twice what eager attention over
    reconstructed bfloat16 keys and values loses, and two units of the output's precision."""
    pages, scaling = inputs.pages, bench.shape.head_dim**-0.5
    one = RowPages(pages.storage, pages.pages[:1], pages.first[:1], pages.tokens[:1], pages.matrices)
    parts = (inputs.exact.sink_keys, inputs.exact.sink_values, inputs.exact.window_keys, inputs.exact.window_values)
    exact = ExactTokens(*(x[:1] for x in parts))
    query, count = inputs.query[:1], int(pages.tokens[0])
    keys, values = (x[:, :count] for x in read_dense(sequence_pages(one, 0), pages.matrices, torch.float64))
    if name == "spectral_reconstruct":
        found = spectral_reconstruct(one.storage, one.pages, pages.matrices, torch.bfloat16, backend="triton")
        error = max(_error(f[0, :, :count], w) for f, w in zip(found, (keys, values), strict=True))
        return error, 2 * _error(keys.bfloat16(), keys) + 1e-3
    # All sequences run: a kernel may be wrong for a batch alone.
    if name == "spectral_decode":
        got = spectral_decode(inputs.query, pages, inputs.exact, backend="triton")[:1]
        want = attend(query[0], (keys, values), exact_tokens(exact, 0, torch.float64), scaling)[None]
    else:
        share = bench.settings.share
        got = spectral_index_decode(inputs.query, pages, inputs.exact, share, backend="triton")[:1]
        selected = select_tokens(query, one, exact, share, backend="triton")
        want = attend_selected(query.double(), one, exact, selected, scaling, torch.float64)
    rounded = tuple(x.bfloat16().float() for x in (keys, values))
    eager = attend(query[0].float(), rounded, exact_tokens(exact, 0, torch.float32), scaling)
    full = attend(query[0].double(), (keys, values), exact_tokens(exact, 0, torch.float64), scaling)
    return _error(got, want), 2 * _error(eager, full) + 2 * torch.finfo(torch.bfloat16).eps


def _error(got: Tensor, want: Tensor) -> float:
    error = float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def cell_settings(bench: Bench) -> dict[str, Any]:
    """What a results file says of the codes."""
    return asdict(replace(bench.settings)) | {"sinks": SINKS, "bytes_per_token": sum(bench.matrices.layout.row_bytes)}
