"""A text unlike the calibration's is told from the bytes it takes."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from spectralquant.cache.persist import likeness
from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.errors import UnlikeTextWarning
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def packed(small, small_profile, ids):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        packet = pack_prompt(small.model, small_profile, ids)[0]
    return packet, [w for w in said if issubclass(w.category, UnlikeTextWarning)]


def test_text_of_the_same_kind_is_not_warned_of(small, small_profile):
    ids = tokenize(small.tokenizer, load_text("builtin:pydoc"), 12_000).ids[None, -1024:]
    packet, said = packed(small, small_profile, ids)
    assert said == [] and 0.7 < likeness.bytes_over_held_out(packet, small_profile) < likeness.MANY_MORE


def test_text_of_another_kind_is(small, small_profile, monkeypatch):
    """The small model is random: its keys depend little on the text, so less of a difference has to count."""
    monkeypatch.setattr(likeness, "MANY_MORE", 1.15)
    ids = torch.randint(0, 512, (1, 1024), generator=torch.Generator().manual_seed(0))
    packet, said = packed(small, small_profile, ids)
    share = likeness.bytes_over_held_out(packet, small_profile)
    assert share > likeness.MANY_MORE
    assert len(said) == 1 and f"takes {share:.1f} times the bytes" in str(said[0].message)
    assert packed(small, small_profile, ids[:, :600])[1] == [], "too few coded tokens to tell"


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_another_step_cannot_be_compared(scale, small_profile):
    packet = SimpleNamespace(header=SimpleNamespace(step_scale=scale), coded_tokens=10_000)
    assert likeness.bytes_over_held_out(packet, small_profile) is None
