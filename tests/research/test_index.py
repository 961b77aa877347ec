"""The index study from end to end on a small model."""

import pytest
from conftest import profile_of

from research.index import IndexStudy, index_study
from spectralquant.errors import SourceError
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def test_reading_less_costs_more():
    loaded, profile = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 4000)
    study = IndexStudy(context=768, scored=384, windows=2, shares=(1.0, 0.5, 0.05), solved=(0.05,))
    result = index_study(loaded, profile, text, "builtin:stdlib", study)
    rows = result["rows"]
    assert [r["options"]["share"] for r in rows] == [1.0, 0.5, 0.05, 0.05]
    shares = rows[3]["options"]["shares"]
    assert len(shares) == len(loaded.model.model.layers) and sum(shares) / len(shares) <= 0.0501
    assert rows[3]["kl_nats"] < 1.3 * rows[2]["kl_nats"]
    assert rows[0]["kl_nats"] < rows[1]["kl_nats"] < rows[2]["kl_nats"]
    assert all(r["n_tokens"] == 768 and 0 < r["index_share_of_fp16"] < 1 for r in rows)


def test_wrong_studies_are_refused():
    loaded, profile = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 1000)
    with pytest.raises(SourceError, match="6 asked for"):
        index_study(loaded, profile, text, "builtin:stdlib", IndexStudy(context=768))
