"""lm-evaluation-harness on our cache. Needs the extra `harness`, and the built-in model for the set of facts."""

from pathlib import Path

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness: make test-rivals")

from spectralquant.errors import InputError  # noqa: E402
from spectralquant.evaluation.harness import SpectralLM  # noqa: E402

FOLDER = Path(__file__).parents[2] / "examples/harness"


def facts(model, limit):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(FOLDER), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=["facts"], task_manager=manager, limit=limit, bootstrap_iters=0)
    return found["results"]["facts"]["acc,none"], [s["filtered_resps"] for s in found["samples"]["facts"]]


def test_an_exact_cache_gives_the_harness_own_figures(small, monkeypatch):
    """The same loglikelihoods as lm-evaluation-harness's model class without a cache of ours."""
    from lm_eval.models.huggingface import HFLM

    monkeypatch.chdir(FOLDER.parents[1])
    options = {"max_length": 2048, "prefix_token_id": 0}
    exact = facts(SpectralLM(small, None, **options), 3)
    plain = facts(HFLM(pretrained=small.model, tokenizer=small.tokenizer, **options), 3)
    for ours, theirs in zip(exact[1], plain[1], strict=True):
        assert torch.allclose(torch.tensor([x[0] for x in ours]), torch.tensor([x[0] for x in theirs]), rtol=1e-3)


def test_a_compressed_cache_is_read_and_counted(small, small_profile, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    exact = facts(SpectralLM(small, None, max_length=2048, prefix_token_id=0), 2)
    model = SpectralLM(small, small_profile, cache={"tier": "cold"}, max_length=2048, prefix_token_id=0)
    coded = facts(model, 2)
    assert 0.5 < model.compressed_tokens / model.read_tokens < 1
    assert coded[1] != exact[1], "older tokens were read compressed"
    with pytest.raises(InputError, match="one request at a time"):
        SpectralLM(small, None, batch_size=4)
