"""Bytes that kernels say they move beside a hardware counter's: `python -m research.generate.counters --out FILE` on a GPU with Nsight Compute.

A second process runs every kernel once at a shape, under `ncu`, which counts what goes between the level-2 cache and memory.
Codes are larger than that cache and random; what one kernel writes and the next reads may stay in it, so that a counter may lie
below the count, and above it only by what is fetched twice.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectralquant.bench.inputs import CodeSettings, coded_tokens, random_inputs, random_matrices
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.models.shapes import parse_shape
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from sqkernels.common.runtime import multiprocessors
from sqkernels.spectral_decode import decode_traffic, spectral_decode
from sqkernels.spectral_index_decode import index_traffic, spectral_index_decode

COUNTERS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
KERNELS = "regex:(prepare|decode|scan|gather|reduce)_kernel"
CONTEXT, BATCHES, SETTINGS = 32768, (1, 8), CodeSettings(share=0.05)
CALLS = {
    "spectral_decode": ("prepare_kernel", "decode_kernel", "reduce_kernel"),
    "spectral_index_decode": ("scan_kernel", "gather_kernel", "reduce_kernel"),
}
TIMEOUT_S = 120


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
        InputError: there is no `ncu`, it may not read counters here, it takes too long, or a kernel is missing.
    """
    if shutil.which("ncu") is None:
        raise InputError("Nsight Compute (ncu) is not on the PATH.")
    command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--kernel-name", KERNELS]
    command += ["--cache-control", "all", "--metrics", ",".join(COUNTERS)]
    command += [sys.executable, "-m", "research.generate.counters", "--once", operator, str(batch)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise InputError(f"ncu did not end within {TIMEOUT_S} s.") from None
    return counters_of(done.stdout, done.stderr, CALLS[operator])


def counters_of(text: str, errors: str, kernels: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of what `ncu --csv --page raw` prints: a line of names, a line of units, a line a kernel; other lines around.

    Raises:
        InputError: no table, a counter without a number, or one of `kernels` missing.
    """
    said = (text + errors)[-600:]
    lines = [line for line in text.splitlines() if line.startswith('"')]
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        way = " It needs the right to read counters (NVreg_RestrictProfilingToAdminUsers=0)." * (
            "ERR_NVGPUCTRPERM" in said
        )
        raise InputError(f"ncu gave no counters.{way} It said: {said}")
    out = []
    for row in csv.DictReader(lines[start:]):
        if not row["ID"].isdecimal():  # the units
            continue
        try:
            values = {n.split(".")[0].removeprefix("dram__"): float(row[n].replace(",", "")) for n in COUNTERS}
        except (KeyError, ValueError):
            raise InputError(f"ncu has no number for {' and '.join(COUNTERS)} of {row['Kernel Name']}.") from None
        out.append({"kernel": row["Kernel Name"]} | values)
    missing = [name for name in kernels if not any(name in r["kernel"] for r in out)]
    if missing:
        raise InputError(f"ncu saw no {', '.join(missing)}, only {', '.join(r['kernel'] for r in out) or 'none'}.")
    return out


def counter_row(operator: str, batch: int) -> dict[str, Any]:
    """Of an operator and batch: bytes counted, bytes by the counter, and the counter kernel by kernel; or why there are none."""
    row: dict[str, Any] = {"operator": operator, "context": CONTEXT, "batch": batch}
    try:
        kernels = read_counters(operator, batch)
    except InputError as error:
        return row | {"failed": str(error)}
    moved = sum(k["bytes_read"] + k["bytes_write"] for k in kernels)
    said = counted(operator, batch)
    return row | {"counted_bytes": said, "counter_bytes": moved, "counter_share": moved / said, "kernels": kernels}


def main() -> int:
    """0: all rows are measured; 1: some could not be, and say why. The file is written after every row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", nargs=2, metavar=("OPERATOR", "BATCH"))
    options = parser.parse_args()
    if options.once:
        run_once(options.once[0], int(options.once[1]))
        return 0
    facts = provenance(**device_facts(torch.device("cuda")), shape="llama-3.1-8b")
    rows: list[dict[str, Any]] = []
    for operator in CALLS:
        for batch in BATCHES:
            rows.append(counter_row(operator, batch))
            write_json(options.out, results_file("counters", rows, facts).as_json())
    failed = [row["failed"] for row in rows if "failed" in row]
    print("\n".join(failed), file=sys.stderr, end="\n" * bool(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
