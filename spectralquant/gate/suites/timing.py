"""Timed operations of an install, one round at a time on request: what `sq gate --against` runs in turn.

`python -m spectralquant.gate.suites.timing` reads lines from stdin and answers each with one line of JSON: the seconds of
every operation. It needs nothing but this package, so that an older install can run it too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.models.forward import with_cache
from spectralquant.models.load import load_model
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

MODEL = "random:custom:layers=8,heads=8,kv_heads=4,head_dim=64,hidden=256,intermediate=512,vocab=400"
TOKENS = 1024


def operations() -> dict[str, Callable[[], Any]]:
    """Name → one run: prefill with compression into each tier, a decoded token from each, a packet there and back."""
    loaded = load_model(MODEL, device="auto", dtype="float32")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 8 * TOKENS)
    settings = CalibrationSettings(
        steps=4, window=512, span="layer", tiers=TIERS, held_out_windows=1, held_out_window=512
    )
    profile = calibrate_model(loaded, text, settings)
    profile.seal()
    ids = text.windows(TOKENS)[-1:].to(loaded.device)

    def fill(tier: str) -> SpectralCache:
        cache = SpectralCache(loaded.model, profile, tier=tier, background=False)
        with torch.no_grad():
            loaded.model(input_ids=ids, **with_cache(loaded.model, cache), logits_to_keep=1)
        return cache

    caches = {tier: fill(tier) for tier in TIERS}
    packets = caches["cold"].pack()

    def token(tier: str) -> None:
        with torch.no_grad():
            loaded.model(input_ids=ids[:, :1], **with_cache(loaded.model, caches[tier]))
        caches[tier].crop(-1)

    runs: dict[str, Callable[[], Any]] = {}
    for tier in TIERS:
        runs[f"prefill/{tier}"] = lambda tier=tier: fill(tier)
        runs[f"token/{tier}"] = lambda tier=tier: token(tier)
    runs["packet/pack"] = caches["cold"].pack
    runs["packet/unpack"] = lambda: SpectralCache.unpack(loaded.model, profile, packets).view(0).dense()
    return runs


def main() -> None:
    """Answer until stdin ends."""
    runs = operations()
    for run in runs.values():
        run()
    print(json.dumps({"ready": list(runs)}), flush=True)
    for _ in sys.stdin:
        times = {}
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name] = time.perf_counter() - begin
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
