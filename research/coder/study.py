"""The entropy coder alone: sizes, the same bytes from CPU and GPU, damaged blocks, and times at shapes of real size.

`python -m research.coder.study SAMPLE.npz OUT.json` runs it on a machine that has neither model nor profile.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from research.coder.baselines import nvcomp_rows, zstd_row
from research.coder.round_trips import random_round_trips
from research.coder.symbols import SymbolSample
from spectralquant.codec.cold import rans_block
from spectralquant.codec.cold.entropy import EntropyCoder
from spectralquant.files import write_json
from spectralquant.geometry import BLOCK
from spectralquant.models.shapes import SHAPES, ModelShape
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from sqkernels.entropy import Contexts, StreamTable, decode, encode, ops

RUNS = 11
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Case:
    """Contexts of `tokens` tokens at a shape, `batch` of them."""

    shape: str
    tokens: int
    batch: int = 1

    @property
    def blocks(self) -> int:
        return self.batch * self.tokens // BLOCK


CASES = (
    Case("smollm2-135m", 2048),
    Case("smollm2-135m", 8192),
    Case("smollm2-135m", 8192, 16),
    Case("llama-3.1-8b", 8192),
    Case("llama-3.1-8b", 32768),
)
CPU_CASES = (Case("smollm2-135m", 2048), Case("smollm2-135m", 8192))


def coder_study(
    sample: SymbolSample,
    shape: ModelShape,
    device: torch.device,
    cases: Sequence[Case] | None = None,
    random_blocks: int = 10_000,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """Rows of all cases; `shape` is the one the sample was taken at, whose share of kept components others inherit."""
    checks = kept.value("round trips", lambda: random_round_trips(sample, device, random_blocks, progress))
    rows = []
    cases = cases or (CASES if device.type == "cuda" else CPU_CASES)
    for done, case in enumerate(cases):
        progress("times", done, len(cases))
        rows += kept.value(str(case), functools.partial(_case_rows, sample, shape, case, device))
    return results_file(
        "coder",
        rows,
        provenance(**device_facts(device), sample=sample.source, sample_shape=shape.name, seed=0),
        checks=checks,
        summary=_summary(rows),
    )


def _case_rows(sample: SymbolSample, shape: ModelShape, case: Case, device: torch.device) -> list[dict[str, Any]]:
    target = SHAPES[case.shape]
    scaled = sample.scaled(target.kv_bytes_per_token / shape.kv_bytes_per_token, case.blocks)
    coder = scaled.coder(device)
    symbols, classes = scaled.symbols.int().to(device), scaled.classes.to(device)
    lengths, ids = [BLOCK] * case.blocks, [(-1, np.arange(BLOCK) % 50_000)] * case.blocks
    start = time.perf_counter()
    parts = coder.encode(symbols, classes, lengths, ids)
    first_s = time.perf_counter() - start
    back = coder.decode(parts)
    exact = torch.equal(back.symbols.int(), symbols)
    fp16 = case.batch * case.tokens * target.kv_bytes_per_token
    sizes = np.array([len(rans_block.join(p)) for p in parts])
    id_bytes = sum(p.id_bytes for p in parts)
    ideal = coder.ideal_bits(symbols, classes) / 8
    row: dict[str, Any] = {
        "coder": "ours",
        "model": case.shape,
        "context": case.tokens,
        "batch": case.batch,
        "symbols": symbols.numel(),
        "fp16_bytes": fp16,
        "bytes": int(sizes.sum()),
        "lanes": sum(p.shape.total_lanes for p in parts),
        "streams": sum(p.shape.streams for p in parts),
        "streams_overhead_share": (int(sizes.sum()) - id_bytes) / ideal - 1,
        "round_trip_exact": exact,
        "first_encode_s": first_s,
    }
    if device.type == "cuda":
        few = min(16, case.blocks)
        host = scaled.coder("cpu")
        again = host.encode(
            symbols[:, : BLOCK * few].cpu().contiguous(), scaled.classes[: BLOCK * few], lengths[:few], ids[:few]
        )
        row["same_bytes_as_cpu"] = [rans_block.join(a) for a in again] == [rans_block.join(b) for b in parts[:few]]
        rows = [row | t for t in _gpu_times(coder, parts, symbols, classes)]
    else:
        times = _cpu_times(coder, parts, symbols, classes, lengths, ids)
        rows = [row | times]
    for r in rows:
        for stage in ("encode", "decode"):
            r[f"{stage}_gb_s"] = fp16 / r[f"{stage}_s"] / 1e9
            r[f"{stage}_gsymbols_s"] = symbols.numel() / r[f"{stage}_s"] / 1e9
    if exact:
        small = symbols.clamp(-128, 127).to(torch.int8)
        base = {k: row[k] for k in ("model", "context", "batch", "symbols", "fp16_bytes")}
        others = nvcomp_rows(small) if device.type == "cuda" else []
        if symbols.numel() < 1 << 28:
            others.append(zstd_row(small))
        rows += [base | o | {f"{s}_gb_s": fp16 / o[f"{s}_s"] / 1e9 for s in ("encode", "decode")} for o in others]
    return rows


def _cpu_times(coder: EntropyCoder, parts, symbols, classes, lengths, ids) -> dict[str, float]:
    encode_s = [_wall(lambda: coder.encode(symbols, classes, lengths, ids)) for _ in range(5)]
    decode_s = [_wall(lambda: coder.decode(parts)) for _ in range(5)]
    return {"encode_s": statistics.median(encode_s), "decode_s": statistics.median(decode_s)}


def _gpu_times(coder: EntropyCoder, parts, symbols, classes) -> list[dict[str, Any]]:
    """Kernels and what the host does around them, for each number of warps a stream."""
    table = StreamTable.of([p.shape for p in parts], coder.rows)
    contexts = Contexts(coder.choice, classes.T.to(torch.uint8).contiguous(), coder.ranks[0])
    device = symbols.device
    streams = torch.from_numpy(np.concatenate([p.streams for p in parts]))
    words = torch.from_numpy(np.concatenate([p.words for p in parts])).to(device)
    states = torch.from_numpy(np.concatenate([p.states for p in parts])).to(device)
    counts, escapes = streams[:, 0].contiguous(), streams[:, 1].contiguous()
    initial = torch.zeros(table.lanes, dtype=torch.uint16, device=device)
    out = []
    before = ops.WARPS
    for warps in (1, 2, 4):
        ops.WARPS = warps
        run_decode = lambda: decode(words, counts, states, escapes, table, contexts, coder.tables)  # noqa: E731
        run_encode = lambda: encode(symbols, initial, table, contexts, coder.tables)  # noqa: E731
        out.append({"warps": warps, "decode_s": _device(run_decode), "encode_s": _device(run_encode)})
    ops.WARPS = before
    return out


def _device(call: Callable[[], Any]) -> float:
    """Median seconds of a call, from events around it."""
    for _ in range(3):
        call()
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _wall(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ours = [r for r in rows if r["coder"] == "ours"]
    out: dict[str, Any] = {}
    for r in ours:
        name = f"{r['model']}_{r['context']}x{r['batch']}"
        for stage in ("decode", "encode"):
            key = f"{stage}_gb_s_{name}"
            out[key] = max(out.get(key, -math.inf), r[f"{stage}_gb_s"])
        out[f"streams_overhead_share_{name}"] = r["streams_overhead_share"]
    return out


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sample")
    parser.add_argument("out")
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(SHAPES))
    parser.add_argument("--random", type=int, default=10_000)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sample = SymbolSample.load(arguments.sample)
    result = coder_study(sample, SHAPES[arguments.shape], device, random_blocks=arguments.random)
    write_json(arguments.out, result.as_json())
    print(result["checks"])
    for row in result["rows"]:
        print({k: (float(f"{v:.4g}") if isinstance(v, float) else v) for k, v in row.items()})


if __name__ == "__main__":
    main()
