"""Layers and heads that cost nothing, or that a budget leaves without bits: they take no bits from others, and it is said."""

import re
from types import SimpleNamespace

import pytest
import torch

import spectralquant as sq
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.solve import _ratio_for_quality
from spectralquant.calibration.targets import parse_target
from spectralquant.errors import InputError
from spectralquant.text.read import load_text
from sqcli.terminal.calibration import kept_table
from tests.conftest import random_model, small_tokenizer

IDS = torch.randint(0, 512, (1, 620), generator=torch.Generator().manual_seed(5))


def calibrated(model, tier, target, **options):
    settings = CalibrationSettings(
        window=384,
        tiers=(tier,),
        held_out_windows=1,
        held_out_window=512,
        targets={tier: parse_target(target)},
        **options,
    )
    return sq.calibrate(
        model, small_tokenizer(), list(load_text("builtin:pydoc")), steps=3, settings=settings, name="x"
    )


def unread(layer):
    """A model in which nothing reads one layer's keys and values."""
    model = random_model()
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight.zero_()
    return model


def still(head):
    """A model in which one key/value head always holds zeros."""
    model = random_model()
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight[16 * head : 16 * (head + 1)].zero_()
    return model


@pytest.mark.parametrize("layer", (0, 1, 2))
@pytest.mark.parametrize("tier", ("hot", "warm"))
@pytest.mark.parametrize("metric", ("fisher", "attention"))
def test_an_unread_layer_takes_no_bits_from_others(tier, layer, metric):
    profile = calibrated(unread(layer), tier, "bits=0.5", metric=metric)
    ranks = profile.tier(tier).value.ranks.view(3, -1).sum(1)
    assert ranks[layer] == 0 < ranks.sum()
    names = profile.sidecar.tiers[tier].without_bits
    assert any(name.startswith(f"values of layer {layer}") for name in names)
    shown = profile.heads.rank[1]
    assert shown[layer].sum() <= shown.sum() / 3


def test_an_unread_layer_with_bases_of_its_own_in_the_cold_tier():
    profile = calibrated(unread(1), "cold", "ratio=40", span="layer", predict="none")
    for kind in ("key", "value"):
        ranks = getattr(profile.tier("cold"), kind).ranks
        assert ranks[1] <= 1 <= ranks.sum()


@pytest.mark.parametrize(
    "target", ({"hot": "bits=0.05"}, {"warm": "bits=0.016"}, {"warm": "bits=0.1"}, {"hot": "bits=0.5"}), ids=str
)
def test_layers_without_bits_read_as_their_mean(target):
    ((tier, goal),) = target.items()
    model = random_model()
    profile = calibrated(model, tier, goal)
    summary = profile.sidecar.tiers[tier]
    empty = [
        (kind, int(i)) for kind in ("key", "value") for i in torch.nonzero(getattr(profile.tier(tier), kind).ranks == 0)
    ]
    assert len(summary.without_bits) == len(empty) > 0
    assert any("without bits" in str(column.header) for column in kept_table(profile.sidecar).columns)
    cache = sq.SpectralCache(model, profile, tier=tier)
    plain = sq.SpectralCache(model, profile, tier=tier, attention="model")
    with torch.no_grad():
        for held in (cache, plain):
            model(input_ids=IDS[:, :600], past_key_values=held, logits_to_keep=1)
        a, b = (model(input_ids=IDS[:, 600:], past_key_values=held).logits for held in (cache, plain))
    assert a.isfinite().all() and torch.allclose(a, b, atol=1e-3)
    group = empty[0][1]
    keys, values = cache.reader.whole(0, cache.state.sequences[0][0])
    if tier == "warm" and ("value", group) in empty:
        mean = profile.tier("warm").value.mean.view(3, 2, 1, 16)[group]
        assert torch.allclose(values[group].float(), mean.expand_as(values[group]), atol=1e-3)
    assert keys.isfinite().all()
    cache.pack()


@pytest.mark.parametrize("target", ({"hot": "ratio=4"}, {"warm": "ratio=4"}, {"cold": "ratio=10"}), ids=str)
def test_a_head_of_zeros(target):
    ((tier, goal),) = target.items()
    profile = calibrated(still(1), tier, goal)
    measured = profile.sidecar.tiers[tier].measured
    assert measured["kl_nats"] < 1e-3
    named = [f"{kind}s of layer {i} head 1" for kind in ("key", "value") for i in range(3)]
    assert profile.sidecar.tiers[tier].without_bits == (named if tier == "hot" else [])


def test_a_budget_below_one_component_is_refused():
    model = random_model(num_hidden_layers=1)
    with pytest.raises(InputError, match=r"too few for a single component of the hot tier.*more bits"):
        calibrated(model, "hot", "bits=0.016")


@pytest.mark.parametrize("metric", ("fisher", "attention"))
def test_a_model_that_reads_no_cache_is_refused(metric):
    model = random_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.self_attn.q_proj.weight.zero_()
    with pytest.raises(InputError, match=r"does not depend on keys and values.*--metric energy"):
        calibrated(model, "warm", "bits=2", metric=metric)
    assert calibrated(model, "warm", "bits=2", metric="energy").sidecar.tiers["warm"].predicted_ratio >= 8


@pytest.mark.parametrize("quantity", ("kl", "dppl"))
@pytest.mark.parametrize(
    "loss", (lambda r: 1 + r, lambda r: 5.0, lambda r: float("inf")), ids=("rising", "flat", "infinite")
)
def test_a_target_out_of_reach_names_a_ratio_that_was_tried(quantity, loss):
    tried = []

    def trial(ratio):
        tried.append(ratio)
        return SimpleNamespace(kl=loss(ratio), delta_ppl=loss(ratio))

    with pytest.raises(InputError) as caught:
        _ratio_for_quality(trial, parse_target(f"{quantity}=0.01"), 30.0)
    named, found = re.search(r"even at ([\d.]+):1 the loss on held-out text was (\S+)\. ", str(caught.value)).groups()
    assert named in {f"{ratio:.1f}" for ratio in tried}
    assert named == f"{min(tried):.1f}" and found == f"{loss(min(tried)):.4g}"
