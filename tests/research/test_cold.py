"""The cold study from calibration to summary, on a small model."""

from dataclasses import replace

import pytest
import torch

from research import cold, second_model
from research.cold import ColdStudy, cold_study
from research.second_model import second_model_study
from spectralquant.errors import InputError, SourceError
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

STUDY = ColdStudy(
    steps=4,
    window=384,
    windows=4,
    long_context=768,
    ratios=(6, 10),
    long_ratios=(8,),
    turbo_bits=(2, 4),
    needle_contexts=(512,),
    needle_ratios=(8,),
)


def test_one_results_file_with_every_part(small):
    result = cold_study(small, tokenize(small.tokenizer, load_text("builtin:pydoc"), 5000), STUDY, "pydoc")
    short = [r for r in result["rows"] if r["context"] == 384]
    long = [r for r in result["rows"] if r["context"] == 768]
    assert len(short) == 4 and len(long) == 4 and len(result["needle"]) == 3
    assert short[0]["payload_ratio"] < short[1]["payload_ratio"] and short[0]["kl_nats"] < short[1]["kl_nats"]
    int8, fp16 = (next(r for r in long if r["options"].get("exact_bits") == bits) for bits in (8, 16))
    assert int8["whole_cache_ratio"] > fp16["whole_cache_ratio"]
    assert abs(result["overhead"]["overhead_share"]) < 0.05
    assert [s["target_ratio"] for s in result["spectrum"]] == [6, 8, 10]
    assert result["spectrum"][0]["predicted_ratio"] == pytest.approx(6, rel=0.05)
    assert result["profile"]["8"]["bytes"] > 0 and "payload_384" in result["summary"]


def test_texts_that_are_too_short_are_refused_before_anything_is_calibrated_or_trained(small, monkeypatch):
    text = tokenize(small.tokenizer, load_text("builtin:pydoc"), 5000)
    monkeypatch.setattr(cold, "CalibrationRun", lambda *_: pytest.fail("calibrated"))
    monkeypatch.setattr(second_model, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(InputError, match=r"Long windows have 8,192 tokens, and 4 scored windows of 384 together fewer"):
        cold_study(small, text, replace(STUDY, long_context=8192), "pydoc")
    with pytest.raises(SourceError, match="Give more text"):
        second_model_study(small.tokenizer, text, "pydoc", torch.device("cpu"), 1.0, lambda *_: None)
