"""Figures in the tuning notes beside the kernels, from the results of `sq study kernels`."""

from __future__ import annotations

from typing import Any

from research.readme.tools import load, table

RESULTS = "tuning-h100"
DECODE = ("block", "warps", "programs", "stages")
INDEX = ("programs", "scan_warps", "block", "stages", "warps")
COMPRESS = ("tokens", "step", "warps", "stages")
NAMES = {"spectral_decode": DECODE, "spectral_index_decode": INDEX, "spectral_compress": COMPRESS}


def decode_settings() -> str:
    """Launch settings of `decode_kernel`."""
    return _settings("spectral_decode")


def index_settings() -> str:
    """Launch settings of `scan_kernel` and `gather_kernel`."""
    return _settings("spectral_index_decode")


def compress_settings() -> str:
    """Launch settings of `compress_kernel`."""
    return _settings("spectral_compress")


def overlap() -> str:
    """The same settings with launches one after the other and overlapping."""
    body = []
    for kernel in ("spectral_decode", "spectral_index_decode"):
        apart, overlapping = (_times(kernel, which) for which in (False, True))
        for key in (k for k in apart if k in overlapping):
            chosen = " ".join(f"{name}={value}" for name, value in zip(NAMES[kernel], key[1:], strict=True))
            body.append([kernel, str(key[0]), chosen, f"{apart[key]:.1f} µs", f"{overlapping[key]:.1f} µs"])
    return table(["kernel", "batch", "settings", "one after the other", "overlapping"], body)


def _times(kernel: str, overlapping: bool) -> dict[tuple[Any, ...], float]:
    rows = [r for r in load(RESULTS)["rows"] if r["kernel"] == kernel]
    rows = [r for r in rows if bool(r["variant"].get("overlap")) == overlapping]
    return {(r["batch"], *(r["variant"][n] for n in NAMES[kernel])): r["time_us"] for r in rows}


def _settings(kernel: str) -> str:
    names = NAMES[kernel]
    found: dict[tuple[Any, ...], dict[int, float]] = {}
    for (batch, *key), time in _times(kernel, False).items():
        found.setdefault(tuple(key), {})[batch] = time
    batches = sorted({b for times in found.values() for b in times})
    body = [[*map(str, key), *(f"{times[b]:.1f} µs" for b in batches)] for key, times in found.items()]
    return table([*(n.replace("_", " ") for n in names), *(f"batch {b}" for b in batches)], body)


BLOCKS = {
    "decode-settings": decode_settings,
    "index-settings": index_settings,
    "compress-settings": compress_settings,
    "overlap": overlap,
}
FILES = ("spectral_decode", "spectral_index_decode", "spectral_compress")
