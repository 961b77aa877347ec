"""Is a packet worth it? Time to decode one against time to compute the prefill again, on this machine."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.models.forward import cache_of
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.text.tokens import TokenText, tokens_sha256

RUNS = 5


def packet_study(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    text: TokenText,
    context: int,
    progress: Callable[[str, int, int], None],
) -> Results:
    """Prefill, pack and unpack the last `context` tokens five times in turn, after one round of warm-up; medians and ranges in seconds."""
    ids = text.windows(context)[-1:].to(loaded.device)
    times: dict[str, list[float]] = {"prefill_s": [], "pack_s": [], "unpack_s": []}
    for run in range(RUNS + 1):
        progress("prefill, pack, unpack", run, RUNS + 1)
        times["prefill_s"].append(_timed(lambda: _prefill(loaded, ids), loaded)[0])
        seconds, packets = _timed(lambda: pack_prompt(loaded.model, profile, ids), loaded)
        times["pack_s"].append(seconds)
        packet = packets[0]
        times["unpack_s"].append(_timed(functools.partial(unpack_cache, loaded.model, profile, packet), loaded)[0])
    times = {name: values[1:] for name, values in times.items()}
    row = {name: statistics.median(values) for name, values in times.items()}
    row |= {f"{name}_range": [min(values), max(values)] for name, values in times.items()}
    row |= {
        "context": context,
        "runs": RUNS,
        "bytes": packet.nbytes,
        "coded_tokens": packet.coded_tokens,
        "coded_bytes": packet.coded_bytes,
        "payload_ratio": packet.coded_fp16_bytes / packet.coded_bytes,
        "whole_cache_ratio": packet.fp16_bytes / packet.nbytes,
        "unpack_over_prefill": row["unpack_s"] / row["prefill_s"],
    }
    return results_file(
        "packet",
        [row],
        provenance(
            **device_facts(loaded.device),
            model=loaded.name,
            weights_sha256=weights_sha256(loaded.model),
            profile_sha256=profile.sidecar.tensors_sha256,
            text_sha256=tokens_sha256(ids.cpu()),
        ),
    )


def _timed(step: Callable[[], Any], loaded: LoadedModel) -> tuple[float, Any]:
    start = time.perf_counter()
    made = step()
    if loaded.device.type == "cuda":
        torch.cuda.synchronize(loaded.device)
    return time.perf_counter() - start, made


@torch.no_grad()
def _prefill(loaded: LoadedModel, ids: torch.Tensor) -> Any:
    return cache_of(loaded.model(input_ids=ids, use_cache=True, logits_to_keep=1))
