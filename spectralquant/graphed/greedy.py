"""Greedy generation without a wait between steps: the host only replays, tokens stay on the device.

transformers' loop waits for the device at every token and prepares inputs that graphs do not read. Where `generate` would
take nothing but the most probable token, the loop below gives the same tokens; everything else goes through transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LOOK_EVERY = 16
READ = {"max_new_tokens", "max_length", "eos_token_id", "pad_token_id"}
WITHOUT_EFFECT = {
    *("bos_token_id", "decoder_start_token_id", "transformers_version", "_from_model_config", "use_cache"),
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "length_penalty"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold", "is_assistant"),
    *("max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
    *("compile_config", "disable_compile", "early_stopping", "speculation_type"),
}
NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
}


@dataclass(frozen=True)
class Greedy:
    """How many tokens there are at most, prompt included, what ends a sequence, and what follows its end."""

    max_length: int
    ends: tuple[int, ...]
    padding: int

    @classmethod
    def of(cls, model: nn.Module, options: dict[str, Any], prompt: int) -> Greedy | None:
        """What `model.generate(**options)` would do, or None where that is more than greedy decoding."""
        given = {k: v for k, v in options.items() if k != "attention_mask"}
        try:
            config, rest = model._prepare_generation_config(given.pop("generation_config", None), **given)
        except (AttributeError, TypeError):
            return None
        for name, value in config.to_dict().items():
            if name not in READ | WITHOUT_EFFECT and value not in (None, False, NEUTRAL.get(name)):
                return None
        if rest or config.max_new_tokens is None:
            return None
        ends = config.eos_token_id
        ends = () if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,)
        if config.pad_token_id is None and not ends:
            return cls(prompt + config.max_new_tokens, (), 0)
        padding = ends[0] if config.pad_token_id is None else config.pad_token_id
        return cls(prompt + config.max_new_tokens, ends, padding)

    @torch.no_grad()
    def run(self, ids: Tensor, logits: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """Ids `[B, T + new]`: the prompt's `[B, T]`, then tokens until all sequences have ended.

        Args:
            logits: `[B, n, V]`, the last of which is the prompt's. step: ids `[B, 1]` → logits `[B, 1, V]`.
        """
        batch, prompt = ids.shape
        output = torch.full((batch, self.max_length), self.padding, dtype=ids.dtype, device=ids.device)
        output[:, :prompt] = ids
        ends = torch.tensor(self.ends, dtype=ids.dtype, device=ids.device)
        ended = torch.zeros(batch, dtype=torch.bool, device=ids.device)
        for place in range(prompt, self.max_length):
            chosen = logits[:, -1].argmax(-1)
            if self.ends:
                chosen = torch.where(ended, self.padding, chosen)
                ended |= torch.isin(chosen, ends)
            output[:, place] = chosen
            if place + 1 == self.max_length or (self.ends and place % LOOK_EVERY == 0 and bool(ended.all())):
                break
            logits = step(chosen[:, None])
        return output[:, : self._length(output, prompt)] if self.ends else output

    def _length(self, output: Tensor, prompt: int) -> int:
        """Tokens up to the last sequence's end."""
        ends = torch.isin(output[:, prompt:], torch.tensor(self.ends, dtype=output.dtype, device=output.device))
        if not bool(ends.any(1).all()):
            return output.shape[1]
        return prompt + int(ends.int().argmax(1).max()) + 1
