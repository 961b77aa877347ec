"""Prompts that a cache holds already: `generate` computes them again, behind themselves, and every token is read twice."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from spectralquant.cache.passes.frames import generate_frame
from spectralquant.errors import RepeatedPromptWarning


@dataclass
class PromptWatch:
    """Looks at every `generate` once, in its first forward pass with a cache. seen: the latest one's own configuration."""

    seen: Callable[[], Any] = lambda: None

    @torch.compiler.disable
    def look(self, held: int) -> None:
        """Warn where the `generate` on this thread's stack was given no more tokens than the `held` ones of its cache."""
        frame = generate_frame()
        call = None if frame is None else frame.f_locals.get("generation_config")  # generate makes one a call
        if call is None or call is self.seen():
            return
        self.seen = weakref.ref(call)
        given = _prompt_tokens(frame)
        if held and given is not None and given <= held:
            warnings.warn(
                f"generate was given {given:,} tokens and a cache that holds {held:,}: it computes them again behind the "
                "ones that are held, so the prompt is read twice. Give it the held tokens and at least one more; to go on "
                "from exactly the held prompt, call cache.crop(-1) first.",
                RepeatedPromptWarning,
                stacklevel=2,
            )

    def __reduce__(self):
        return PromptWatch, ()


class UnpackedCache(DynamicCache):
    """What `unpack_cache` gives: a `DynamicCache` that says so when its prompt is fed again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = PromptWatch()

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any):
        """See `DynamicCache`."""
        if layer_idx == 0 and (held := self.get_seq_length()):
            self.watch.look(held)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _prompt_tokens(frame: FrameType) -> int | None:
    """Tokens a sequence that `generate` was called with."""
    arguments = frame.f_locals
    for value in (
        arguments.get("inputs_tensor"),
        arguments.get("inputs"),
        (arguments.get("kwargs") or {}).get("input_ids"),
    ):
        if torch.is_tensor(value):
            return value.shape[1]
    return None
