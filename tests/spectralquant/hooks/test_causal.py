"""What tokens receive, from log-sum-exps: the same as from whole probabilities, in time linear in the tokens."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model
from torch.utils._python_dispatch import TorchDispatchMode

from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.geometry import BLOCK
from spectralquant.hooks import observe
from spectralquant.hooks.causal import causal_attention
from spectralquant.hooks.tap import AttentionTap


def calls_of(model, tokens: int, look) -> list:
    ids = torch.arange(tokens)[None] * 7 % 512
    out = []

    def observer(call):
        out.append(look(call))

    with torch.no_grad(), AttentionTap(model, observer):
        model(input_ids=ids, use_cache=False)
    return out


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("tokens", [1, 2, 300])
def test_the_output_is_the_models_own(architecture, tokens):
    def look(call):
        return torch.equal(causal_attention(call)[0], call.run())

    assert calls_of(random_model(architecture), tokens, look) == [True] * 3


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 300, 640])
def test_received_is_the_same_with_and_without_log_sum_exps(tokens, monkeypatch):
    model = random_model()
    fast = calls_of(model, tokens, lambda call: observe.attention_received(call, BLOCK))
    monkeypatch.setattr(observe, "causal_attention", lambda call: None)
    slow = calls_of(model, tokens, lambda call: observe.attention_received(call, BLOCK))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert bool((a[:, -1] == 0).all()), "nothing comes after the last token"


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_windows_and_soft_caps_are_left_to_the_general_way(architecture):
    assert None in calls_of(random_model(architecture), 300, causal_attention)


class Written(TorchDispatchMode):
    """Counts the elements of every new tensor that an operator returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        outputs = [] if function.is_view else out if isinstance(out, (tuple, list)) else [out]
        for tensor in outputs:
            if torch.is_tensor(tensor):
                self.elements += tensor.numel()
        return out


def test_packing_writes_as_much_for_the_last_token_as_for_the_first(small, small_profile):
    def written(tokens: int) -> int:
        ids = torch.arange(tokens)[None] * 7 % 512
        with Written() as mode:
            pack_prompt(small.model, small_profile, ids)
        return mode.elements

    written(512)
    short, middle, long = written(1024), written(2048), written(4096)
    assert long - middle < 1.05 * 2 * (middle - short)
