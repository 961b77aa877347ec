"""`sq study cold-speed`: how fast packets come and go, against the prefill that they replace and against other coders.

`python -m research.cold_speed.study SAMPLE.npz OUT.json` runs it on a GPU machine that has neither model nor profile; SAMPLE is
what `sq study cold-speed --keep-sample SAMPLE.npz` wrote elsewhere.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from research.coder.baselines import nvcomp_rows, zstd_row
from research.coder.study import random_round_trips
from research.cold_speed.codec import Row, check, codec_rows, make_bench, product_rate, timed
from research.cold_speed.prefill import fitted_profile, prefill_rows
from research.cold_speed.sample import SpeedSample
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.models.load import load_model
from spectralquant.models.shapes import SHAPES, ModelShape
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file

LARGE = "llama-3.1-8b"
CONTEXTS = (8192, 32768)
SMALL_BATCH = 16
KVTC_SECONDS = 0.380  # decoding 8K tokens of an 8B model: Staniszewski & Łańcucki 2025, arXiv 2511.01815
MADE = (
    "Symbols, their tables, importance classes and the share of kept components are those of the sample's profile; components repeat, "
    "each with its tables and with symbols of other tokens of the same class, up to the shape's width. Bases are those "
    "that sq calibrate chooses at the shape (at 8B two levels over all layers, kept as two factors), of random orthonormal rows. Token ids are a real text's. For prefill and first tokens the "
    "model has random weights, and means and gains are fitted so that its coefficients have the sample's variances."
)
Progress = Callable[[str, int, int], None]


def cold_speed_study(
    sample: SpeedSample,
    own: ModelShape,
    device: torch.device,
    save: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: Progress = lambda stage, done, total: None,
    random_blocks: int = 10_000,
) -> dict[str, Any]:
    """All rows; `own` is the shape that the sample was taken at. `save` gets the results so far, so that a run cut short leaves them.

    Raises:
        InputError: no CUDA GPU.
    """
    if device.type != "cuda":
        raise InputError("cold-speed times kernels: it needs a CUDA GPU (--device cuda).")
    facts = provenance(**device_facts(device), sample=sample.symbols.source, sample_shape=own.name, made=MADE, seed=0)
    rows: list[Row] = []
    checks: dict[str, Any] = {}

    def keep(stage: str, new: Sequence[Row] = ()) -> None:
        rows.extend(new)
        save(results_file("cold-speed", rows, facts, checks=checks, summary=_summary(rows)))
        progress(stage, len(rows), 40)
        gc.collect()
        torch.cuda.empty_cache()

    large = SHAPES[LARGE]
    for tokens in CONTEXTS:
        keep(f"{LARGE}, {tokens:,} tokens", _shape_rows(sample, own, large, tokens, 1, device, checks))
    keep("small model, batch 16", _shape_rows(sample, own, own, CONTEXTS[0], SMALL_BATCH, device, checks))
    keep("other coders", _other_coders(sample, own, large, device))
    for new in _model_rows(sample, own, large, device):
        keep("prefill", new)
    checks |= random_round_trips(sample.symbols, device, random_blocks, progress)
    checks["product_tflop_s"] = product_rate(device)
    keep("done")
    return results_file("cold-speed", rows, facts, checks=checks, summary=_summary(rows))


def _shape_rows(
    sample: SpeedSample, own: ModelShape, shape: ModelShape, tokens: int, batch: int, device: torch.device, checks: Row
) -> list[Row]:
    bench = make_bench(sample, own, shape, tokens, batch, device)
    checks[f"{shape.name}_{tokens}x{batch}"] = check(bench)
    return codec_rows(bench)


def _other_coders(sample: SpeedSample, own: ModelShape, shape: ModelShape, device: torch.device) -> list[Row]:
    """General compressors on the symbols alone, and a copy of the keys and values as they are."""
    tokens = CONTEXTS[0]
    fp16 = tokens * shape.kv_bytes_per_token
    scaled = sample.at(shape, own, tokens // 128)
    base = {"model": shape.name, "context": tokens, "batch": 1, "fp16_bytes": fp16}
    out = []
    small = scaled.symbols.clamp(-128, 127).to(torch.int8)
    for result_so_far in (*nvcomp_rows(small.to(device)), zstd_row(small)):
        for what in ("encode", "decode"):
            out.append(
                base
                | {
                    "what": f"{what}, symbols alone",
                    "coder": result_so_far["coder"],
                    "packet_bytes": result_so_far["bytes"],
                }
                | {"seconds": result_so_far[f"{what}_s"], "gb_s": fp16 / result_so_far[f"{what}_s"] / 1e9}
            )
    return [*out, base | _copy_row(fp16, device)]


def _copy_row(fp16: int, device: torch.device) -> Row:
    source = torch.empty(fp16 // 2, dtype=torch.float16, pin_memory=True).normal_()
    target = torch.empty(fp16 // 2, dtype=torch.float16, device=device)
    seconds, spread = timed(lambda: target.copy_(source, non_blocking=True), True)
    return {
        "what": "copy of keys and values from pinned memory",
        "seconds": seconds,
        **spread,
        "gb_s": fp16 / seconds / 1e9,
    }


def _model_rows(sample: SpeedSample, own: ModelShape, shape: ModelShape, device: torch.device) -> Iterator[list[Row]]:
    loaded = load_model(f"random:{shape.name}", device=str(device), dtype="bfloat16", offline=True)
    ids = torch.from_numpy(sample.text(max(CONTEXTS)).astype(np.int64))[None].to(device)
    profile = fitted_profile(loaded, sample, own, shape, ids)
    for tokens in CONTEXTS:
        yield prefill_rows(loaded, profile, ids[:, :tokens], shape)


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that the project's goals name."""

    def value(what: str, tokens: int, key: str, batch: int = 1, model: str = LARGE) -> float | None:
        for r in rows:
            if (r["what"], r["context"], r["batch"], r["model"]) == (what, tokens, batch, model):
                return r[key]
        return None

    out: dict[str, Any] = {"kvtc_published_s": KVTC_SECONDS}
    for tokens, name in zip(CONTEXTS, ("8k", "32k"), strict=True):
        for what in ("decode", "encode"):
            out[f"{what}_gb_s_{name}"] = value(what, tokens, "gb_s")
            out[f"{what}_s_{name}"] = value(what, tokens, "seconds")
        out[f"streams_overhead_share_{name}"] = value("decode", tokens, "streams_overhead_share")
        prefill = out[f"prefill_s_{name}"] = value("prefill", tokens, "seconds")
        if prefill is None:
            continue
        out[f"prefill_over_decode_{name}"] = prefill / out[f"decode_s_{name}"]
        for key, what in (
            ("prefill_cold_s", "prefill with cold writing"),
            ("first_token_pinned_s", "first token from pinned memory"),
            ("first_token_disk_s", "first token from disk"),
        ):
            out[f"{key}_{name}"] = value(what, tokens, "seconds")
        out[f"prefill_longer_share_{name}"] = out[f"prefill_cold_s_{name}"] / prefill - 1
        out[f"prefill_over_first_token_pinned_{name}"] = prefill / out[f"first_token_pinned_s_{name}"]
        out[f"prefill_over_first_token_disk_{name}"] = prefill / out[f"first_token_disk_s_{name}"]
    out["prefill_longer_share"] = out.get("prefill_longer_share_8k")
    out["streams_overhead_share"] = out["streams_overhead_share_8k"]
    return out


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sample")
    parser.add_argument("out")
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(SHAPES))
    parser.add_argument("--random", type=int, default=10_000)
    arguments = parser.parse_args()
    sample = SpeedSample.load(arguments.sample)
    result = cold_speed_study(
        sample,
        SHAPES[arguments.shape],
        torch.device("cuda"),
        lambda result_so_far: write_json(arguments.out, result_so_far.as_json()),
        lambda stage, done, total: print(stage, flush=True) if not stage.startswith("random") else None,
        arguments.random,
    )
    write_json(arguments.out, result.as_json())
    print(result["summary"], result["checks"])


if __name__ == "__main__":
    main()
