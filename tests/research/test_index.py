"""The index study from end to end on a small model."""

import pytest
from conftest import profile_of

from research.generate.with_index import bytes_share
from research.index import IndexStudy, index_study
from spectralquant.errors import SourceError
from spectralquant.results.quality import MethodRow
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def test_reading_less_costs_more():
    loaded, profile = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 4000)
    study = IndexStudy(context=768, scored=384, windows=2, shares=(1.0, 0.5, 0.05), budgets=(0.2, 0.01))
    result = index_study(loaded, profile, text, "builtin:stdlib", study)
    rows = result["rows"]
    assert len(rows) == 5, "a budget that the index alone exceeds has no rows"
    assert [r["options"]["share"] for r in rows[:3]] == [1.0, 0.5, 0.05]
    even, solved = rows[3:]
    assert even["options"]["share"] == solved["options"]["share"]
    assert 0.19 < bytes_share(MethodRow(**solved)) <= 0.2, "as many tokens as the bytes buy, and no more"
    shares = solved["options"]["shares"]
    assert (
        len(shares) == len(loaded.model.model.layers) and sum(shares) / len(shares) <= even["options"]["share"] + 1e-4
    )
    assert solved["kl_nats"] < 1.3 * even["kl_nats"]
    assert rows[0]["kl_nats"] < rows[1]["kl_nats"] < rows[2]["kl_nats"]
    assert all(r["n_tokens"] == 768 and 0 < r["index_share_of_fp16"] < 1 for r in rows)


def test_wrong_studies_are_refused():
    loaded, profile = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 1000)
    with pytest.raises(SourceError, match="6 asked for"):
        index_study(loaded, profile, text, "builtin:stdlib", IndexStudy(context=768))
