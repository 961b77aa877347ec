"""A model that predicts hardly better than token frequencies is named wherever something is measured with it."""

import math
import warnings

import pytest
import torch

from spectralquant.errors import SuspectModelWarning
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.unigram import hardly_better, perplexity, unigram_perplexity, warn_if_suspect
from spectralquant.methods.coding.none import Uncompressed
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def test_unigram_perplexity_of_known_texts():
    assert unigram_perplexity(torch.arange(64)) == pytest.approx(64)
    assert unigram_perplexity(torch.zeros(10, dtype=torch.int64)) == pytest.approx(1)
    assert unigram_perplexity(torch.tensor([[0, 0], [0, 1]])) == pytest.approx(
        math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    )


@pytest.mark.parametrize(
    "base,suspect", [(20, False), (79, False), (81, True), (8638, True), (math.inf, True), (math.nan, True)]
)
def test_the_line_is_four_fifths(base, suspect):
    assert hardly_better(base, 100.0) == suspect
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_if_suspect(base, 100.0)
    assert len(said) == suspect and all(w.category is SuspectModelWarning for w in said)


def test_perplexity_never_overflows():
    assert perplexity(1e9) == math.inf and math.isnan(perplexity(math.nan))


def test_a_random_model_is_suspect_and_its_rows_say_so(small):
    windows = tokenize(small.tokenizer, load_text("builtin:pydoc"), 2000).windows(512)[:1]
    with pytest.warns(SuspectModelWarning, match="a unigram model, which knows no context, reaches"):
        found = measure(small.model, small.geometry, windows, [Uncompressed()])[0]
    row = found.row(small.geometry, "small", 512)
    assert row["suspect_model"] and row["unigram_ppl"] == pytest.approx(unigram_perplexity(windows[:, 1:]))


def test_a_model_that_knows_its_text_is_not_suspect(small):
    """The same model with a head that knows what follows each token of a short cycle."""
    import copy

    model = copy.deepcopy(small.model)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(torch.randn(512, 64), dim=1)
        model.model.embed_tokens.weight.copy_(rows)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(2 * rows.roll(1, 0))
    windows = torch.arange(100, 200).repeat(6)[None, :512]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SuspectModelWarning)
        found = measure(model, small.geometry, windows, [Uncompressed()])[0]
    assert found.base_ppl < 5 and not found.row(small.geometry, "x", 512)["suspect_model"]
