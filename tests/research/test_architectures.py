"""Every architecture of the list is right or refused with a reason, as the page in docs says."""

import json
from pathlib import Path

import pytest
import torch

from research.architectures import study
from research.architectures.configurations import ARCHITECTURES, Architecture
from research.architectures.study import REFUSED, RIGHT, WRONG, architecture_study, try_architecture

RECORDED = {
    row["name"]: row
    for row in json.loads((Path(__file__).parents[2] / "profiles/results/architectures.json").read_text())["rows"]
}
BY_NAME = {a.name: a for a in ARCHITECTURES}
QUICK = (
    "phi3 (longrope)",
    "gemma2",
    "gemma3n_text",
    "gpt2",
    "gpt_oss",
    "glm4",
    "smollm3",
    "qwen2_5_vl",
    "nanochat",
    *(name for name, row in RECORDED.items() if row["outcome"] == REFUSED),
)


@pytest.fixture(autouse=True)
def few_tokens_after_the_prompt(monkeypatch):
    """Still some in one pass, some alone and some generated."""
    for name, number in {"NEXT": 10, "ALONE": 2, "NEW": 3}.items():
        monkeypatch.setattr(study, name, number)


def agrees(name: str) -> None:
    row, recorded = try_architecture(BY_NAME[name]), RECORDED[name]
    assert row["outcome"] == recorded["outcome"], row.get("reason")
    if row["outcome"] == REFUSED:
        assert row["reason"] == recorded["reason"] and row["class"] in row["reason"]
    else:
        assert {k: row[k] for k in ("layers", "heads", "kv_heads", "head_dim", "rotary_pairs", "windows")} == {
            k: recorded[k] for k in ("layers", "heads", "kv_heads", "head_dim", "rotary_pairs", "windows")
        }


def test_the_list_is_long_its_names_differ_and_every_one_was_tried():
    assert len(BY_NAME) == len(ARCHITECTURES) and set(RECORDED) == set(BY_NAME)
    outcomes = [row["outcome"] for row in RECORDED.values()]
    assert outcomes.count(RIGHT) >= 60 and outcomes.count(REFUSED) >= 30 and WRONG not in outcomes


@pytest.mark.parametrize("name", QUICK)
def test_some_architectures(name):
    agrees(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in QUICK])
def test_every_architecture(name):
    agrees(name)


def test_a_cache_whose_values_stand_a_token_late_is_found(monkeypatch):
    from spectralquant.cache.tiers.cold import ColdTier

    dense = ColdTier.dense

    def one_token_late(*arguments):
        keys, values = dense(*arguments)
        return keys, values.roll(1, dims=0)

    monkeypatch.setattr(ColdTier, "dense", one_token_late)
    row = try_architecture(Architecture("llama", "RoPE in halves"))
    assert row["outcome"] == WRONG and "cold: logits are" in row["reason"]
    assert row["distances"]["exact"] < 1e-3 and row["distances"]["warm"] < 0.1


def test_what_a_model_raises_is_a_fault_of_the_study_and_not_its_end(monkeypatch):
    def broken(model):
        raise ZeroDivisionError("no attention here")

    monkeypatch.setattr(study, "probe_geometry", broken)
    result = architecture_study([Architecture("llama", "RoPE in halves"), Architecture("bloom", "ALiBi")])
    assert [r["outcome"] for r in result["rows"]] == [WRONG, WRONG]
    assert result["rows"][0]["reason"] == "ZeroDivisionError: no attention here"


def test_equal_configurations_make_equal_models_and_leave_the_generator_alone():
    state = torch.random.get_rng_state()
    a, b = (study.make_model(BY_NAME["mixtral"]) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
