"""A model is the same model in any dtype, on any device and in any wrapper; a changed one is another."""

import copy
import json
import time

import pytest
import torch

import spectralquant as sq
from spectralquant.errors import ProfileError
from spectralquant.hooks.wrappers import has, named_modules, named_parameters
from spectralquant.models import identity
from spectralquant.models.identity import difference, model_identity, same_rounded, weights_sha256
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile
from tests.conftest import profile_of, random_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def identity_of(model):
    return model_identity("small", model, probe_geometry(model))


@pytest.mark.parametrize("checkpoint", (*DTYPES, torch.float64))
@pytest.mark.parametrize("calibrated", DTYPES)
@pytest.mark.parametrize("served", (*DTYPES, torch.float64))
def test_one_checkpoint_is_one_model_in_every_dtype(checkpoint, calibrated, served):
    model = random_model().to(checkpoint)
    described = identity_of(copy.deepcopy(model).to(calibrated))
    assert difference(described, copy.deepcopy(model).to(served)) is None


@pytest.mark.parametrize("calibrated", DTYPES)
@pytest.mark.parametrize("served", DTYPES)
@pytest.mark.parametrize("change", (2**-7, 2**-9))
def test_fine_tuning_of_one_matrix_is_another_model(calibrated, served, change):
    model = random_model()
    described = identity_of(copy.deepcopy(model).to(calibrated))
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(1 + change)
    assert difference(described, model.to(served)) is not None


def test_weights_of_another_seed_are_another_model():
    described = identity_of(random_model().bfloat16())
    torch.manual_seed(1)
    other = random_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    for dtype in DTYPES:
        assert "Calibrate" in difference(described, copy.deepcopy(other).to(dtype))


def test_values_that_half_precision_cannot_hold_are_no_difference():
    exact = torch.tensor([1e-8, 3e-6, 1e5, -1e5, 0.0, 1.0, -2.5e-7])
    for a in DTYPES:
        for b in DTYPES:
            assert same_rounded(exact.to(a).float(), a, exact.to(b).float(), b), (a, b)
    moved = exact.clone()
    moved[5] = 1.02
    assert not same_rounded(moved.bfloat16().float(), torch.bfloat16, exact.half().float(), torch.float16)
    assert not same_rounded(exact[:3], torch.float32, exact, torch.float32)


def test_a_profile_without_dtype_and_sketch_is_still_accepted(tmp_path):
    loaded, profile = profile_of("llama")
    path = profile.save(tmp_path / "old")
    facts = json.loads(path.read_text())
    for name in ("weights_dtype", "weights_sketch"):
        del facts["model"][name]
    del facts["sidecar_sha256"]
    for tier in facts["tiers"].values():
        del tier["without_bits"]
    path.write_text(json.dumps(facts))
    old = CalibrationProfile.load(path)
    for dtype in DTYPES:
        old.require_model(copy.deepcopy(loaded.model).to(dtype))


def test_an_old_profile_says_that_the_dtype_is_the_reason():
    model = random_model()
    described = identity_of(copy.deepcopy(model).bfloat16())
    described.weights_dtype = described.weights_sketch = None
    assert "dtype" in difference(described, copy.deepcopy(model).half())


@pytest.mark.parametrize("sketch", ("", "not base64 at all", "AAAA", "eJwDAAAAAAE="))
def test_a_damaged_sketch_fits_nothing(sketch):
    model = random_model()
    described = identity_of(copy.deepcopy(model).bfloat16())
    described.weights_sketch = sketch
    assert difference(described, copy.deepcopy(model).half()) is not None


def test_the_message_names_both_models_and_dtypes():
    profile = profile_of("llama")[1]
    other = random_model("qwen2").half()
    with pytest.raises(ProfileError, match=r"float32, weights \w{12}\), not on this model \(Qwen2ForCausalLM, float16"):
        profile.require_model(other)


def test_hashing_happens_once_a_model_and_again_when_weights_change(monkeypatch):
    model, counted = random_model(), []
    hashes = identity._hashes
    monkeypatch.setattr(identity, "_hashes", lambda weights: counted.append(1) or hashes(weights))
    first = weights_sha256(model)
    assert weights_sha256(model) == first and weights_sha256(model, torch.float16) != first
    assert len(counted) == 1
    parameter = model.model.layers[0].mlp.up_proj.weight
    changes = (
        lambda: parameter.detach().mul_(2),
        lambda: parameter.data.mul_(2),
        lambda: setattr(parameter, "data", parameter.data / 3),
        lambda: setattr(model.model.layers[0].mlp.up_proj, "weight", torch.nn.Parameter(parameter.detach() + 1)),
        lambda: model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}),
    )
    seen = {first}
    for change in changes:
        change()
        assert weights_sha256(model) not in seen
        seen.add(weights_sha256(model))
    assert len(counted) == 1 + len(changes)
    model.half()
    weights_sha256(model)
    assert len(counted) == 2 + len(changes)


def test_a_second_look_at_a_large_model_takes_milliseconds():
    model = random_model("llama", hidden_size=1024, intermediate_size=2048, num_hidden_layers=8)
    weights_sha256(model)
    begin = time.perf_counter()
    for _ in range(5):
        weights_sha256(model)
    assert (time.perf_counter() - begin) / 5 < 0.1


def test_the_hash_sees_the_same_weights_inside_inference_mode_and_autocast():
    model = random_model()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = weights_sha256(copy.deepcopy(model))
    assert inside == weights_sha256(model)


@pytest.mark.parametrize("packed", DTYPES)
@pytest.mark.parametrize("opened", DTYPES)
def test_a_packet_of_one_dtype_opens_in_another(packed, opened):
    loaded, profile = profile_of("llama")
    ids = torch.randint(0, 512, (1, 600), generator=torch.Generator().manual_seed(5))
    one, other = (copy.deepcopy(loaded.model).to(dtype) for dtype in (packed, opened))
    packet = sq.pack_prompt(one, profile, ids)[0]
    exact = sq.unpack_cache(loaded.model, profile, sq.pack_prompt(loaded.model, profile, ids)[0])
    dense = sq.unpack_cache(other, profile, packet)
    for mine, theirs in zip(dense.layers, exact.layers, strict=True):
        assert mine.keys.dtype == opened
        assert (mine.values.float() - theirs.values).norm() < 0.1 * theirs.values.norm()
    cache = sq.SpectralCache.unpack(other, profile, packet)
    with torch.no_grad():
        logits = [other(input_ids=ids[:, :1], past_key_values=held).logits.float() for held in (cache, dense)]
    assert (logits[0] - logits[1]).norm() < 0.05 * logits[1].norm()


def test_modules_and_parameters_are_walked_as_torch_walks_them():
    model = random_model()
    model.twice = model.lm_head  # one module by two names
    model.nothing = None
    assert [n for n, _ in named_modules(model)] == [n for n, _ in model.named_modules()]
    assert [n for n, _ in named_parameters(model)] == [n for n, _ in model.named_parameters()]
    assert has(model, "lm_head") and has(model, "config") and has(model, "device") and not has(model, "base_layer")
