"""What a cache costs and saves on this machine: memory of whole processes, time per token, share of prefill.

Memory: one process a tier runs a long generation; its resident set above the loaded model is recorded. On a GPU the
peak of CUDA's allocator, which can be set back, in one process.
Time: in one process, decode steps of the compressed and of the uncompressed cache are taken in turn.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.errors import SpectralQuantError
from spectralquant.models.forward import with_cache
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

Progress = Callable[[str, int, int], None]
CHUNK = 512
MEMORY_CHUNK = 128
MEMORY_TOKENS = 8
STEPS = {"hot": 48, "warm": 12, "cold": 6}
PREFILLS = 3


def cache_study(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    text: TokenText,
    context: int,
    time_context: int,
    progress: Progress,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """Rows for uncompressed and every tier of the profile: times at `time_context`, memory at `context` tokens."""
    ids = text.windows(time_context)[-1:].to(loaded.device)
    rows = []
    for tier in ("none", *profile.tiers):
        progress(f"time: {tier}", 0, 1)
        row: dict[str, Any] = {"tier": tier, "time_context": time_context}
        if tier != "none":
            row |= kept.value(f"time: {tier}", functools.partial(_times, loaded, profile, tier, ids))
        rows.append(row)
    long = text.windows(context)[-1:]
    for row in rows:
        progress(f"memory: {row['tier']}", 0, 1)
        cuda = loaded.device.type == "cuda"
        measured = functools.partial(_memory if cuda else _in_own_process, loaded, profile, row["tier"])
        row |= kept.value(f"memory: {row['tier']}", functools.partial(measured, long.to(loaded.device)))
    facts = provenance(
        **device_facts(loaded.device),
        model=loaded.name,
        weights_sha256=weights_sha256(loaded.model),
        text_sha256=tokens_sha256(long),
        dtype=str(loaded.model.dtype),
        profile=profile.id.hex(),
    )
    return results_file("cache", rows, facts)


def _times(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor) -> dict[str, Any]:
    return _decode_times(loaded, profile, tier, ids) | _prefill_times(loaded, profile, tier, ids)


@torch.no_grad()
def _prefill(loaded: LoadedModel, cache: Cache, ids: Tensor, chunk: int) -> Tensor:
    for start in range(0, ids.shape[1], chunk):
        out = loaded.model(input_ids=ids[:, start : start + chunk], **with_cache(loaded.model, cache), logits_to_keep=1)
    return out.logits[:, -1:].argmax(-1)


@torch.no_grad()
def _decode_times(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor) -> dict[str, Any]:
    """Seconds per decoded token, both caches in turn; blocks that are coded meanwhile are in the figures."""
    caches: list[Cache] = [DynamicCache(config=loaded.model.config), SpectralCache(loaded.model, profile, tier=tier)]
    token, _ = (_prefill(loaded, cache, ids, CHUNK) for cache in caches)
    times: list[list[float]] = [[], []]
    for step in range(STEPS[tier] + 2):
        for which, cache in enumerate(caches):
            begin = _now(loaded)
            loaded.model(input_ids=token, **with_cache(loaded.model, cache))
            if step >= 2:
                times[which].append(_now(loaded) - begin)
    dense, coded = (statistics.median(t) for t in times)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    return {
        "steps": len(times[0]),
        "dense_token_s": dense,
        "token_s": coded,
        "token_s_range": [min(times[1]), max(times[1])],
        "token_ratio": coded / dense,
        "token_ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
    }


def _prefill_times(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor) -> dict[str, Any]:
    """Whole-prompt prefill with and without the cache, in turn, and the share spent compressing."""
    dense, coded, compress = [], [], []
    for _ in range(PREFILLS):
        begin = _now(loaded)
        _prefill(loaded, DynamicCache(config=loaded.model.config), ids, ids.shape[1])
        dense.append(_now(loaded) - begin)
        cache = SpectralCache(loaded.model, profile, tier=tier)
        begin = _now(loaded)
        _prefill(loaded, cache, ids, ids.shape[1])
        coded.append(_now(loaded) - begin)
        compress.append(cache.stats().spent.compress_s)
    base = statistics.median(dense)
    return {
        "dense_prefill_s": base,
        "prefill_s": statistics.median(coded),
        "compress_s": statistics.median(compress),
        "compress_share_of_prefill": statistics.median(compress) / base,
        "prefill_ratio": statistics.median(coded) / base,
    }


def _now(loaded: LoadedModel) -> float:
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter()


def _in_own_process(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor) -> dict[str, Any]:
    job = {
        "model": loaded.name,
        "device": str(loaded.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "profile": str(profile.path),
        "tier": tier,
        "ids": ids.tolist(),
    }
    command = [sys.executable, "-m", "research.cache"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SpectralQuantError(f"The process that measures {tier} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """Load, then `_memory`."""
    loaded = load_model(job["model"], device=job["device"], dtype=job["dtype"])
    profile = CalibrationProfile.load(job["profile"], verify=False)
    return _memory(loaded, profile, job["tier"], torch.tensor(job["ids"], device=loaded.device))


def _memory(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor) -> dict[str, Any]:
    """What is held beyond the loaded model while `ids: [1, T]` are read and some tokens generated."""
    cache = (
        DynamicCache(config=loaded.model.config) if tier == "none" else SpectralCache(loaded.model, profile, tier=tier)
    )
    with torch.no_grad():
        loaded.model(input_ids=ids[:, :MEMORY_CHUNK], use_cache=False, logits_to_keep=1)
    watch = _PeakMemory(loaded.device)
    token = _prefill(loaded, cache, ids, MEMORY_CHUNK)
    with torch.no_grad():
        for _ in range(MEMORY_TOKENS):
            token = loaded.model(input_ids=token, **with_cache(loaded.model, cache)).logits[:, -1:].argmax(-1)
    row: dict[str, Any] = {"memory_context": ids.shape[1], "peak_memory_bytes": watch.stop()}
    row["memory_kind"] = "CUDA allocator peak" if loaded.device.type == "cuda" else "resident set of the process"
    row["fp16_bytes"] = loaded.geometry.fp16_bytes(cache.get_seq_length())
    row["cache_dtype"] = str(loaded.model.dtype).removeprefix("torch.")
    if isinstance(cache, SpectralCache):
        stats = cache.stats()
        row |= {"resident_bytes": stats.resident_bytes, "resident_ratio": stats.resident_ratio}
        row |= {"kernel_reads": stats.spent.kernel_reads, "in_place_reads": stats.spent.in_place_reads}
    return row


class _PeakMemory:
    """Peak of the process above the moment of construction: CUDA's allocator, or the resident set sampled at 2 ms."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stop = threading.Event()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.base = torch.cuda.memory_allocated(device)
            return
        self.base = self.peak = _resident()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _resident())

    def stop(self) -> int:
        """Bytes above the base."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.base
        self._stop.set()
        self._thread.join()
        return self.peak - self.base


def _resident() -> int:
    import os

    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(_child(json.load(sys.stdin))))
