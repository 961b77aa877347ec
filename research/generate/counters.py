"""Bytes that kernels say they move beside a hardware counter's: `python -m research.generate.counters --out FILE` on a GPU with Nsight Compute.

A second process runs every kernel once at a shape, under `ncu`, which counts what goes between the level-2 cache and memory.
Codes are larger than that cache and random; what one kernel writes and the next reads may stay in it, so that a counter may lie
below the count, and above it only by what is fetched twice.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from spectralquant.bench.inputs import CodeSettings, coded_tokens, random_inputs, random_matrices
from spectralquant.errors import InputError
from spectralquant.models.shapes import parse_shape
from spectralquant.provenance import device_facts, provenance
from sqkernels.common.runtime import multiprocessors
from sqkernels.spectral_decode import decode_traffic, spectral_decode
from sqkernels.spectral_index_decode import index_traffic, spectral_index_decode

COUNTERS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
KERNELS = "regex:(prepare|decode|scan|gather|reduce)_kernel"
CONTEXT, BATCHES, SETTINGS = 32768, (1, 8), CodeSettings(share=0.05)
CALLS = ("spectral_decode", "spectral_index_decode")


def counted(operator: str, batch: int) -> int:
    """Bytes that a call says it reads and writes."""
    shape = parse_shape("llama-3.1-8b")
    matrices = random_matrices(shape, SETTINGS, "cpu")
    coded = coded_tokens(CONTEXT, SETTINGS.window)
    exact, group = SETTINGS.window + 4, shape.heads // shape.kv_heads
    if operator == "spectral_decode":
        processors = multiprocessors(torch.device("cuda"))
        return decode_traffic(matrices, coded, exact, group, processors=processors, batch=batch)["bytes"]
    return index_traffic(matrices, coded, exact, SETTINGS.selected(coded), group, batch=batch)["bytes"]


def run_once(operator: str, batch: int) -> None:
    """One call with random codes, after one of another set of pages that takes them out of the cache."""
    shape, device = parse_shape("llama-3.1-8b"), torch.device("cuda")
    matrices = random_matrices(shape, SETTINGS, device)
    inputs = random_inputs(shape, matrices, batch, CONTEXT, SETTINGS.window, 0)
    torch.empty(256 << 20, dtype=torch.uint8, device=device).random_()
    torch.cuda.synchronize()
    if operator == "spectral_decode":
        spectral_decode(inputs.query, inputs.pages, inputs.exact)
    else:
        spectral_index_decode(inputs.query, inputs.pages, inputs.exact, SETTINGS.share)
    torch.cuda.synchronize()


def read_counters(operator: str, batch: int) -> list[dict[str, Any]]:
    """A row a kernel: its name and the counters' bytes.

    Raises:
        InputError: there is no `ncu`, or it may not read counters here.
    """
    if shutil.which("ncu") is None:
        raise InputError("Nsight Compute (ncu) is not on the PATH.")
    command = [
        "ncu",
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "--kernel-name",
        KERNELS,
        "--cache-control",
        "all",
    ]
    command += [
        "--metrics",
        ",".join(COUNTERS),
        sys.executable,
        "-m",
        "research.generate.counters",
        "--once",
        operator,
        str(batch),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise InputError(f"ncu gave no counters: {(done.stdout + done.stderr)[-600:]}")
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))[1:]
    return [
        {"kernel": r["Kernel Name"]}
        | {n.split(".")[0].removeprefix("dram__"): float(r[n].replace(",", "")) for n in COUNTERS}
        for r in rows
    ]


def counter_rows() -> list[dict[str, Any]]:
    """Every operator and batch: bytes counted, bytes by the counter, and the counter kernel by kernel."""
    out = []
    for operator in CALLS:
        for batch in BATCHES:
            kernels = read_counters(operator, batch)
            moved = sum(k["bytes_read"] + k["bytes_write"] for k in kernels)
            said = counted(operator, batch)
            row = {"operator": operator, "context": CONTEXT, "batch": batch, "counted_bytes": said}
            out.append(row | {"counter_bytes": moved, "counter_share": moved / said, "kernels": kernels})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", nargs=2, metavar=("OPERATOR", "BATCH"))
    options = parser.parse_args()
    if options.once:
        run_once(options.once[0], int(options.once[1]))
        return
    facts = provenance(**device_facts(torch.device("cuda")), shape="llama-3.1-8b")
    result = {"schema_version": 1, "kind": "spectralquant.counters", "provenance": facts, "rows": counter_rows()}
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
