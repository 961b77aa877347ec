"""The study of the serving mode on a small random model: every curve, and what its summary compares."""

from __future__ import annotations

from conftest import profile_of

from research.serving_codec import ServingStudy, serving_codec_study
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def test_every_codec_restores_the_same_prefixes():
    loaded, _ = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 40_000)
    study = ServingStudy(steps=4, window=512, windows=2, ratios=(6, 12), chunks=(128, 64))
    result = serving_codec_study(loaded, text, study, "pydoc", lambda *_: None)
    knows = {r.options["knows"] for r in result.rows}
    assert knows == {"serving", "serving, no importance", "token ids", "token ids and attention"}
    by = {(r.options["knows"], r.options["aim"]): r for r in result.rows if r.options["chunk"] == 128}
    for name in knows:
        assert by[name, 12].coded_bytes < by[name, 6].coded_bytes
        assert by[name, 12].kl_nats > 0.8 * by[name, 6].kl_nats > 0
    assert {r.prompt_tokens for r in result.rows} == {384}
    assert "token_ids_gain_at_kl_0.01" in result.summary
