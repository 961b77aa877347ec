"""One cell: a contender at a context and a batch."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from spectralquant.bench.generate.contenders import Contender

WARM_UP = 4


class TokenTimes(LogitsProcessor):
    """Notes when every token's logits were there. It waits for the device, so times are of finished steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.is_cuda:
            torch.cuda.synchronize(scores.device)
        self.seconds.append(time.perf_counter())
        return scores


def decode_row(
    contender: Contender, batch: int, prompt: int, new: int, vocab: int, device: torch.device, *, stalls: bool
) -> dict[str, Any]:
    """Tokens a second of `generate` from a filled cache. The first run, which compiles, is apart.

    stalls: also, in a run of their own, step_ms: median time from token to token; stall_ms: the slowest of them less the
    median; host and device work both count. seconds_first: of the first run of a few tokens.
    """
    ids = torch.randint(3, vocab, (batch, prompt), device=device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    contender.fill(prompt - 1)
    _settle(device)
    begin = time.perf_counter()
    contender.generate(ids, True, max_new_tokens=WARM_UP, **options)
    _settle(device)
    first = time.perf_counter() - begin
    contender.fill(prompt - 1)
    _settle(device)
    begin = time.perf_counter()
    output = contender.generate(ids, True, max_new_tokens=new, **options)
    _settle(device)
    seconds = time.perf_counter() - begin
    if output.shape[1] != prompt + new:
        raise RuntimeError(f"generate gave {output.shape[1] - prompt} tokens, not {new}")
    row = {"tokens_per_s": batch * new / seconds, "seconds_first": first, **_memory(device)}
    if stalls:
        contender.fill(prompt - 1)
        times = TokenTimes()
        contender.generate(ids, True, max_new_tokens=new, logits_processor=LogitsProcessorList([times]), **options)
        gaps = [1000 * (b - a) for a, b in zip(times.seconds, times.seconds[1:], strict=False)]
        row |= {"step_ms": statistics.median(gaps), "stall_ms": max(gaps) - statistics.median(gaps)}
    return row


def first_token_row(contender: Contender, batch: int, prompt: int, vocab: int, device: torch.device) -> dict[str, Any]:
    """Time to first token of a prompt that is read, the second time (milliseconds), and what the first time took."""
    ids = torch.randint(3, vocab, (batch, prompt), device=device)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    seconds = []
    for _ in range(3):
        _settle(device)
        begin = time.perf_counter()
        contender.generate(ids, False, max_new_tokens=1, **options)
        _settle(device)
        seconds.append(time.perf_counter() - begin)
    return {"ttft_ms": 1000 * min(seconds[1:]), "ttft_first_ms": 1000 * seconds[0], **_memory(device)}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> dict[str, int | None]:
    return {"peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None}
