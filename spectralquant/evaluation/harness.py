"""`SpectralLM`: lm-evaluation-harness on a compressed cache. Needs the extra `harness`.

    from lm_eval import simple_evaluate
    from spectralquant.evaluation.harness import SpectralLM

    simple_evaluate(model=SpectralLM(load_model("builtin:smollm2-135m"), profile), tasks=["facts"], task_manager=…)

Whatever the harness asks about is read in blocks of 128 tokens through a cache of the model's own, so older blocks are read
compressed. The first 4 and the last 128 to 255 tokens are exact: a question shorter than that says nothing about a codec, and
`compressed_tokens` tells how many were.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.errors import InputError
from spectralquant.geometry import BLOCK
from spectralquant.models.forward import with_cache
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile


class SpectralLM(HFLM):  # type: ignore[misc]
    """A loaded model whose requests are read through a `SpectralCache` of one tier.

    Args:
        loaded: the model, with its tokenizer.
        profile: its calibration profile; None reads through an exact cache, which is the uncompressed score.
        cache: options of `SpectralCache`, as `{"tier": "cold"}`.
        options: of lm-evaluation-harness's `HFLM`, as `max_length`.

    compressed_tokens, read_tokens: tokens that a request read compressed in the end, and all, summed over requests.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        profile: CalibrationProfile | None,
        *,
        cache: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if options.get("batch_size", 1) != 1:
            raise InputError("SpectralLM reads one request at a time: batch_size must be 1.")
        super().__init__(pretrained=loaded.model, tokenizer=loaded.tokenizer, **options)
        self.profile = profile
        self.cache_options = {"tier": "exact" if profile is None else "auto", "background": False, **(cache or {})}
        self.compressed_tokens = self.read_tokens = 0

    def _new_cache(self) -> SpectralCache:
        return SpectralCache(self.model, self.profile, **self.cache_options)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Logits `[1, T, V]` of token ids `[1, T]`, read block by block."""
        cache, logits = self._new_cache(), []
        with torch.no_grad():
            for start in range(0, inps.shape[1], BLOCK):
                part = inps[:, start : start + BLOCK]
                logits.append(self.model(input_ids=part, **with_cache(self.model, cache)).logits)
        self._count(cache)
        return torch.cat(logits, dim=1)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Token ids `[1, T]`, the context's first, which is read at once and then compressed."""
        cache = self._new_cache()
        answer: Tensor = super()._model_generate(context, max_length, stop, past_key_values=cache, **options)
        self._count(cache)
        return answer

    def _count(self, cache: SpectralCache) -> None:
        stats = cache.stats()
        self.read_tokens += stats.tokens
        self.compressed_tokens += stats.tokens - stats.exact_tokens
