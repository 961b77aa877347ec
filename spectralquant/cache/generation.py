"""Text from a compressed cache, for `sq generate`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from spectralquant.cache.report.stats import CacheStats
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.cache.unfinished_text import UnfinishedText, saved_text
from spectralquant.errors import InputError, NotCompressedWarning
from spectralquant.models.forward import with_cache
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import prompt_ids


@dataclass(frozen=True)
class GenerationOptions:
    """See `sq generate`; sizes in bytes and tokens."""

    tier: str = "auto"
    new_tokens: int = 100
    max_bytes: int | None = None
    working_set: int = 0
    chunk: int = 1024
    sample: bool = False
    seed: int = 0
    exact_bits: int = 16


@dataclass(frozen=True)
class Generated:
    """The text, counts of tokens, wall time, and the cache's account at the end."""

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    stats: CacheStats


def generate_text(
    loaded: LoadedModel,
    profile: CalibrationProfile | None,
    prompt: str,
    options: GenerationOptions,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Generated:
    """Continue `prompt` from a `SpectralCache`. `kept` keeps an interrupted run's cache and text.

    Raises:
        InputError: an empty prompt, or one that leaves no room before the model's last position.
    """
    ids = torch.tensor([prompt_ids(loaded.tokenizer, prompt)], dtype=torch.int64, device=loaded.device)
    if ids.shape[1] == 0:
        raise InputError("The prompt has no tokens.")
    require_known_ids(loaded.model, ids)
    what = f"The prompt ({ids.shape[1]:,}) with the text to come ({options.new_tokens:,})"
    require_positions(
        loaded.model, ids.shape[1] + options.new_tokens, what, "Shorten the prompt or ask for fewer new tokens."
    )
    torch.manual_seed(options.seed)
    saved = saved_text(kept.folder, loaded, profile) if kept.resume else None
    cache, given = saved or (_new_cache(loaded, profile, options), ids[0].tolist())
    so_far = torch.tensor([given], dtype=torch.int64, device=loaded.device)
    follower = UnfinishedText(kept.folder, cache, so_far, options.new_tokens, len(given) - ids.shape[1], progress)
    chunks = {} if saved else {"prefill_chunk_size": options.chunk}
    begin = time.perf_counter()
    pad = loaded.tokenizer.pad_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotCompressedWarning)  # the reasons are in stats
        new_ids = loaded.model.generate(
            input_ids=so_far,
            attention_mask=torch.ones_like(so_far),
            **with_cache(loaded.model, cache),
            max_new_tokens=options.new_tokens - (len(given) - ids.shape[1]),
            do_sample=options.sample,
            pad_token_id=loaded.tokenizer.eos_token_id if pad is None else pad,
            streamer=follower,
            **chunks,
        )[0, ids.shape[1] :]
        seconds, stats = time.perf_counter() - begin, cache.stats()
    text = loaded.tokenizer.decode(new_ids, skip_special_tokens=True)
    return Generated(text, ids.shape[1], len(new_ids), seconds, stats)


def _new_cache(loaded: LoadedModel, profile: CalibrationProfile | None, options: GenerationOptions) -> SpectralCache:
    return SpectralCache(
        loaded.model,
        profile,
        tier=options.tier,
        max_bytes=options.max_bytes,
        working_set=options.working_set,
        exact_bits=options.exact_bits,
    )
