"""Every tier, packets and profiles on models whose layers do not read equally far back."""

import copy
import dataclasses
import functools
import warnings

import pytest
import torch
from conftest import SMALL_CALIBRATION, random_model, small_tokenizer
from transformers import DynamicCache

from spectralquant import SpectralCache, pack_prompt, unpack_cache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.capture.statistics import GroupedMoments, SpanMoments
from spectralquant.calibration.run import CalibrationRun
from spectralquant.codec.packet import PacketHeader, SpectralPacket
from spectralquant.errors import InputError, NotCompressedWarning, PacketError, ProfileError
from spectralquant.geometry import CacheGeometry, LayerGroup
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.tensors import SplitTier, fixed_part
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

HYBRID = ["sliding_attention"] * 2 + ["full_attention"]
SHARED = {
    "head_dim": 16,
    "sliding_window": 300,
    "num_kv_shared_layers": 2,
    "num_hidden_layers": 5,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 512,
    "activation_sparsity_pattern": None,
    "layer_types": [*HYBRID, "sliding_attention", "full_attention"],
}
MODELS = {
    "sliding": ("mistral", {"sliding_window": 300}),
    "hybrid": ("gemma3_text", {"sliding_window": 300, "layer_types": HYBRID}),
    "narrow": ("gemma3_text", {"sliding_window": 64, "layer_types": HYBRID}),
    "shared keys": ("gemma3n_text", SHARED),
}
TIERS = ["hot", "warm", "cold"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def calibrated(name: str) -> tuple[LoadedModel, CalibrationProfile]:
    architecture, changes = MODELS[name]
    model = random_model(architecture, **changes)
    loaded = LoadedModel(name, model, small_tokenizer(), probe_geometry(model))
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    return loaded, calibrate_model(loaded, text, SMALL_CALIBRATION)


def ids(tokens: int, seed: int = 0, rows: int = 1) -> torch.Tensor:
    return torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def decoded(model, cache, prompt: torch.Tensor, steps: int = 4) -> list[torch.Tensor]:
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)
        tokens = [ids(1, s, len(prompt)).to(prompt.device) for s in range(steps)]
        return [model(input_ids=each, past_key_values=cache).logits for each in tokens]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", MODELS)
def test_reading_in_place_minds_the_window(name, tier):
    """The same codes, read by our attention and as dense tensors by the model's own (which is not asked how much tokens are
    read, so that the cold tier codes them with other steps).
    """
    loaded, profile = calibrated(name)
    for tokens in (700, 1153):
        both = []
        for attention in ("spectral", "model"):
            cache = SpectralCache(
                loaded.model, profile, tier=tier, attention=attention, background=False, step_scale=0.07
            )
            both.append(decoded(loaded.model, cache, ids(tokens, rows=2)))
        for a, b in zip(*both, strict=True):
            assert relative(a, b) < (0.05 if tier == "cold" else 2e-3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_kernels_read_sliding_layers(name):
    """One query reads its whole window, so that no mask is in the kernels' way; padding is another thing."""
    loaded, profile = calibrated(name)
    model, both = copy.deepcopy(loaded.model).to(DEVICE), []
    for kernels in ("triton", "torch"):
        cache = SpectralCache(model, profile, tier="hot", kernels=kernels)
        both.append((decoded(model, cache, ids(700, rows=2).to(DEVICE), 1), cache.stats()))
    (mine, stats), (theirs, _) = both
    assert max(relative(a, b) for a, b in zip(mine, theirs, strict=True)) < 5e-3
    coded = sum(group.layers for group in stats.groups if group.coded)
    assert stats.spent.kernel_reads >= coded and stats.spent.in_place_reads == 0, "layers that share keys read too"
    assert stats.spent.kernel_refusal is None


@pytest.mark.parametrize("name", MODELS)
def test_a_fine_step_is_as_good_as_exact(name):
    loaded, profile = calibrated(name)
    prompt = ids(1200)
    exact = decoded(loaded.model, DynamicCache(config=loaded.model.config), prompt)
    cache = SpectralCache(loaded.model, profile, tier="cold", step_scale=0.02, background=False)
    found = decoded(loaded.model, cache, prompt)
    assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < 0.01
    assert cache.coded_tokens > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_as_a_packet(name, tmp_path):
    loaded, profile = calibrated(name)
    model, prompt = loaded.model, ids(1200)
    packet = pack_prompt(model, profile, prompt, step_scale=0.02)[0]
    packet.save(tmp_path / "prompt.sqkv")
    own = DynamicCache(config=model.config)
    exact = decoded(model, own, prompt)
    held = sum(4 * layer.keys.numel() for layer in own.layers if layer.keys is not None)
    assert packet.fp16_bytes == loaded.geometry.fp16_bytes(1200) == pytest.approx(held, rel=0.01)
    again = SpectralPacket.open(tmp_path / "prompt.sqkv")
    cache = SpectralCache(model, profile, tier="cold", step_scale=0.02, background=False)
    with torch.no_grad():
        model(input_ids=prompt, past_key_values=cache, logits_to_keep=1)
    mine = cache.pack()[0]
    shape = [(s.start, s.tokens, s.kind, s.group) for s in packet.sections]
    assert [(s.start, s.tokens, s.kind, s.group) for s in mine.sections] == shape
    for other in (
        unpack_cache(model, profile, again),
        SpectralCache.unpack(model, profile, tmp_path / "prompt.sqkv", step_scale=0.02),
        SpectralCache.unpack(model, profile, mine, step_scale=0.02),
    ):
        with torch.no_grad():
            found = [model(input_ids=ids(1, s), past_key_values=other).logits for s in range(4)]
        assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < 0.01


def test_a_packet_of_other_windows_is_refused():
    loaded, profile = calibrated("hybrid")
    packet = pack_prompt(loaded.model, profile, ids(700))[0]
    other = random_model("gemma3_text", sliding_window=400, layer_types=HYBRID)
    for read in (unpack_cache, SpectralCache.unpack):
        with pytest.raises(PacketError, match="other windows"):
            read(other, profile, packet)


def test_packets_lack_nothing_that_is_read_next():
    """A packet that begins after the oldest token that can be read is refused, whatever its checksums say."""
    groups = (LayerGroup((0,), 300),)
    header = PacketHeader(1, 1, 2, 700, 128, 0, "float16", 1.0, bytes(16), groups)
    rows = lambda start: [(start, 700 - start, 1, bytes(8 * (700 - start)))]  # noqa: E731
    assert SpectralPacket.build(header, rows(401)).sections[0].start == 401
    with pytest.raises(PacketError, match="lacks tokens"):
        SpectralPacket.build(header, rows(402))


@pytest.mark.parametrize("name", MODELS)
def test_profiles_keep_groups_apart_on_disk(name, tmp_path):
    loaded, profile = calibrated(name)
    profile.save(tmp_path / "profile")
    again = CalibrationProfile.load(tmp_path / "profile")
    assert again.id == profile.id
    coded = loaded.geometry.coded_groups(256)
    for tier in TIERS:
        assert isinstance(again.tier(tier), SplitTier) == (len(loaded.geometry.groups) > 1)
        assert list(again.parts(tier, coded)) == [group.layers for group in coded]


def joint(profile: CalibrationProfile, loaded: LoadedModel) -> CalibrationProfile:
    """A profile as it was made before: every tier codes all layers as one."""
    blind = dataclasses.replace(loaded.geometry, windows=())
    plain = LoadedModel(loaded.name, loaded.model, loaded.tokenizer, blind)
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    return calibrate_model(plain, text, SMALL_CALIBRATION)


def test_profiles_of_before():
    """Their hot and warm tiers are used layer by layer; a cold tier over all layers is refused, its packets are read."""
    loaded, profile = calibrated("hybrid")
    old = joint(profile, loaded)
    assert not isinstance(old.tier("cold"), SplitTier)
    exact = decoded(loaded.model, DynamicCache(config=loaded.model.config), ids(900))
    for tier in ("hot", "warm"):
        found = decoded(loaded.model, SpectralCache(loaded.model, old, tier=tier), ids(900))
        assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < 0.3
    for make in (
        lambda: SpectralCache(loaded.model, old, tier="cold"),
        lambda: pack_prompt(loaded.model, old, ids(900)),
    ):
        with pytest.raises(ProfileError, match="Calibrate again"):
            make()
    assert fixed_part(old.tier("hot"), 32, (0, 1, 2)).key_bits.equal(old.tier("hot").key_bits)


def test_what_stays_exact_is_said():
    loaded, profile = calibrated("narrow")
    cache = SpectralCache(loaded.model, profile, tier="hot")
    decoded(loaded.model, cache, ids(700))
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCompressedWarning)
        reasons = [each.reason for each in cache.stats().not_compressed]
    assert reasons == ["narrow_windows"]
    model = random_model("mistral", sliding_window=64)
    other = LoadedModel("m", model, small_tokenizer(), probe_geometry(model))
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    cache = SpectralCache(model, calibrate_model(other, text, dataclasses.replace(SMALL_CALIBRATION, tiers=("hot",))))
    decoded(model, cache, ids(700))
    with pytest.warns(NotCompressedWarning, match="64 tokens at most"):
        assert cache.stats().resident_ratio <= 1


def test_narrow_windows_at_8_bits_are_said_to_be_so():
    loaded, profile = calibrated("narrow")
    cache = SpectralCache(loaded.model, profile, tier="cold", background=False, exact_bits=8)
    with torch.no_grad():
        loaded.model(input_ids=ids(600), past_key_values=cache)
    assert any("they hold their window at 8 bits a number" in each.message for each in cache.stats().not_compressed)
    assert all(layer.parts()["keys.codes"].shape[2] and not layer.parts()["keys.new"].numel() for layer in cache.layers)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", MODELS)
def test_ratios_are_against_the_models_own_cache(name, tier):
    loaded, profile = calibrated(name)
    own, cache = DynamicCache(config=loaded.model.config), SpectralCache(loaded.model, profile, tier=tier)
    for each in (own, cache):
        decoded(loaded.model, each, ids(1500))
    stats = cache.stats()
    float16 = sum(2 * 2 * layer.keys.numel() for layer in own.layers if layer.keys is not None)
    assert stats.fp16_bytes == float16
    assert stats.resident_ratio == float16 / stats.resident_bytes
    assert stats.payload_ratio == pytest.approx(
        sum(t.fp16_bytes for t in stats.tiers.values()) / sum(t.bytes for t in stats.tiers.values())
    )
    coded = sum(group.coded_tokens * group.layers for group in stats.groups)
    assert sum(t.fp16_bytes for t in stats.tiers.values()) <= coded * 128


def test_grouped_sums_are_those_of_the_layers():
    """What groups of layers add up apart are blocks of what all layers together add up."""
    x, rows = torch.randn(50, 24), torch.randn(40, 24)
    whole, parts = SpanMoments(24, 24), GroupedMoments(6, [(1, 3), (0, 2)], [12, 6])
    for moments in (whole, parts):
        moments.add(x, rows)
    assert torch.allclose(parts.mean, whole.mean)
    for (a, first, metric), (b, second, other) in zip(
        parts.groups(3, metric=True), whole.groups(3, metric=True), strict=True
    ):
        assert a == b and torch.allclose(first, second, atol=1e-5) and torch.allclose(metric, other, atol=1e-4)
    _, both, _ = next(parts.part((1, 3), 6).groups(12, metric=False))
    columns = torch.cat([torch.arange(6, 12), torch.arange(18, 24)])
    assert torch.allclose(both, whole.covariance(0)[columns][:, columns], atol=1e-5)


def test_calibration_goes_on_after_a_stop(tmp_path):
    loaded, _ = calibrated("hybrid")
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    settings = dataclasses.replace(SMALL_CALIBRATION, tiers=("cold",), steps=4)
    run = CalibrationRun(loaded, text, settings, "text", None, False, None, lambda *_: None)
    sums, _ = run.first_pass()
    again, _ = CalibrationRun(loaded, text, settings, "text", None, False, None, lambda *_: None).first_pass()
    again.load_state(sums.state())
    for mine, theirs in zip(sums.moments, again.moments, strict=True):
        assert torch.equal(mine.parts[0].second[0].dense(), theirs.parts[0].second[0].dense())


def test_a_window_of_the_caches_own_narrows_what_is_coded():
    loaded, profile = calibrated("hybrid")
    cache = SpectralCache(loaded.model, profile, tier="cold", window=256)
    decoded(loaded.model, cache, ids(900))
    assert [group.coded for group in cache.stats().groups] == [True, False]
    packet = pack_prompt(loaded.model, profile, ids(900))[0]
    with pytest.raises(PacketError, match="another window"):
        SpectralCache.unpack(loaded.model, profile, packet, window=256)


def test_compress_gives_what_can_be_read():
    loaded, profile = calibrated("hybrid")
    cache = SpectralCache(loaded.model, profile, tier="cold", step_scale=0.05, background=False)
    keys, values = (torch.randn(3, 2, 500, 16) for _ in range(2))
    packet = cache.compress(keys, values, ids(500)[0])
    back = SpectralCache.unpack(loaded.model, profile, packet, step_scale=0.05)
    for layer, first in enumerate((201, 201, 0)):
        found = back.view(layer, 0).dense()
        assert relative(found[0][0], keys[layer, :, first:]) < 0.2
        assert relative(found[1][0], values[layer, :, first:]) < 0.2
    narrow, _ = calibrated("narrow")
    with pytest.raises(InputError, match="pass values"):
        SpectralCache(narrow.model, calibrated("narrow")[1], tier="cold").compress(keys, None, ids(500)[0])


def test_copies_of_coded_groups_go_on_alike():
    loaded, profile = calibrated("hybrid")
    cache = SpectralCache(loaded.model, profile, tier="hot", ages={"cold": 256})
    decoded(loaded.model, cache, ids(900))
    other = copy.deepcopy(cache)
    a, b = (decoded(loaded.model, each, ids(150, 7)) for each in (cache, other))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_geometry_of_some_layers():
    geometry = CacheGeometry(3, 4, 2, 16, (True, False, True), (300, 300, None))
    assert [group.layers for group in geometry.coded_groups(256)] == [(2,), (0, 1)]
    assert [group.layers for group in geometry.coded_groups(300)] == [(2,)]
    assert [group.layers for group in geometry.part((0, 1)).coded_groups(300)] == [(0, 1)], "where none is, all are"
