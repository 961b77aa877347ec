"""Prompts to packets and back, on a small model."""

import contextlib
from dataclasses import replace

import pytest
import torch
from conftest import ARCHITECTURES, random_model

from spectralquant.cache.persist.prompt import coded_range, continue_from, pack_prompt, unpack_cache
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.codec.packet import CODED, EXACT, SpectralPacket
from spectralquant.errors import InputError, PacketError, ProfileError
from spectralquant.text.read import load_text

SETTINGS = CalibrationSettings(window=384, held_out_windows=1, held_out_window=512)


def profile_for(model, tokenizer, **changes):
    return calibrate(
        model,
        tokenizer,
        load_text("builtin:pydoc"),
        steps=4,
        target="ratio=8",
        settings=replace(SETTINGS, **changes),
        name="small",
    )


@pytest.fixture(scope="module")
def profile(small):
    return profile_for(small.model, small.tokenizer)


def ids(count, seed=0):
    return torch.randint(0, 512, (1, count), generator=torch.Generator().manual_seed(seed))


def exact_cache(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=True).past_key_values


def stacked(cache):
    return torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])


@pytest.mark.parametrize(
    "total, expected",
    [
        (1, (1, 1)),
        (5, (5, 5)),
        (128, (128, 128)),
        (255, (255, 255)),
        (256, (4, 128)),
        (300, (4, 128)),
        (511, (4, 256)),
        (2048, (4, 1920)),
    ],
)
def test_sinks_and_128_to_255_recent_tokens_stay_exact(total, expected):
    assert coded_range(total) == expected
    if expected[0] < total:
        assert 128 <= total - expected[1] <= 255


@pytest.mark.parametrize("total", [1, 5, 130, 256, 600])
def test_round_trip_through_bytes(small, profile, total):
    tokens = ids(total)
    packet = SpectralPacket(bytes(pack_prompt(small.model, profile, tokens)[0].data))
    got, want = stacked(unpack_cache(small.model, profile, packet)), stacked(exact_cache(small.model, tokens))
    assert got.shape == want.shape
    first, last = coded_range(total)
    for part in (slice(0, first), slice(last, total)):
        assert torch.allclose(got[..., part, :], want[..., part, :], atol=1e-5)
    if first < last:
        error = (got - want)[..., first:last, :].norm() / want[..., first:last, :].norm()
        assert 0.001 < error < 0.7


def test_finer_steps_converge_to_the_exact_cache(small, profile):
    tokens, want = ids(400), stacked(exact_cache(small.model, ids(400)))
    errors, sizes = [], []
    for scale in (4.0, 1.0, 0.25):
        packet = pack_prompt(small.model, profile, tokens, step_scale=scale)[0]
        errors.append((stacked(unpack_cache(small.model, profile, packet)) - want).norm().item())
        sizes.append(packet.nbytes)
    assert errors[0] > errors[1] > errors[2] and sizes[0] < sizes[1] < sizes[2]


def test_short_prompts_continue_exactly(small, profile):
    for total in (1, 5):
        packet = pack_prompt(small.model, profile, ids(total))[0]
        a = continue_from(small, unpack_cache(small.model, profile, packet), "the", 8)
        assert a == continue_from(small, exact_cache(small.model, ids(total)), "the", 8)


def test_padded_batches_give_the_packets_of_their_rows(small, profile):
    rows = [ids(300, 1)[0], ids(420, 2)[0]]
    width = 430
    batch, mask = torch.zeros(2, width, dtype=torch.int64), torch.zeros(2, width, dtype=torch.int64)
    for i, row in enumerate(rows):
        batch[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    packets = pack_prompt(small.model, profile, batch, mask)
    for row, packet in zip(rows, packets, strict=True):
        assert bytes(packet.data) == bytes(pack_prompt(small.model, profile, row[None])[0].data)


def test_blocks_decode_alone_from_a_memory_map(small, profile, tmp_path):
    from spectralquant.cache.persist.prompt import profile_codecs

    pack_prompt(small.model, profile, ids(600))[0].save(tmp_path / "p.sqkv")
    packet = SpectralPacket.open(tmp_path / "p.sqkv")
    coded = [s for s in packet.sections if s.kind == CODED]
    keys, values = profile_codecs(small.model, profile, small.geometry.groups)[0].decode(packet.body(coded[2]))
    assert keys.shape[0] == coded[2].tokens == 128 and bool(torch.isfinite(values).all())


def test_int8_sinks_and_window_shrink_the_packet(small, profile):
    sizes = {e: pack_prompt(small.model, profile, ids(400), exact=e)[0].nbytes for e in ("float32", "float16", "int8")}
    assert sizes["int8"] < 0.7 * sizes["float16"] < 0.5 * sizes["float32"]
    with pytest.raises(InputError, match="not one of auto"):
        pack_prompt(small.model, profile, ids(10), exact="int4")


def test_foreign_profiles_models_and_empty_prompts_are_refused(small, profile):
    packet = pack_prompt(small.model, profile, ids(300))[0]
    other = profile.sidecar.model_copy(update={"tensors_sha256": "cd" * 32})
    foreign = replace(profile, sidecar=other)
    with pytest.raises(PacketError, match="Use the profile that packed it"):
        unpack_cache(small.model, foreign, packet)
    with pytest.raises(ProfileError, match="Calibrate a profile for this model"):
        pack_prompt(random_model("qwen2"), profile, ids(10))
    with pytest.raises(InputError, match="empty"):
        pack_prompt(small.model, profile, ids(3), torch.zeros(1, 3))


def test_damaged_block_bytes_raise_packet_errors(small, profile):
    from spectralquant.cache.persist.prompt import profile_codecs

    packet = pack_prompt(small.model, profile, ids(300))[0]
    body = bytes(packet.body(next(s for s in packet.sections if s.kind == CODED)))
    codec = profile_codecs(small.model, profile, small.geometry.groups)[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        damaged = bytearray(body)
        at = int(torch.randint(0, len(body), (1,), generator=generator))
        damaged[at] ^= 1 + int(torch.randint(0, 255, (1,), generator=generator))
        with contextlib.suppress(PacketError):
            codec.decode(bytes(damaged))


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "llama"])
def test_other_architectures_round_trip(architecture, tokenizer):
    model = random_model(architecture)
    profile = profile_for(model, tokenizer)
    tokens = ids(300)
    packet = pack_prompt(model, profile, tokens, step_scale=0.1)[0]
    got = unpack_cache(model, profile, packet)
    for layer, (key, value) in enumerate(stacked_calls(model, tokens)):
        for mine, theirs in ((got.layers[layer].keys, key), (got.layers[layer].values, value)):
            theirs = theirs[:, :, -mine.shape[2] :]  # a sliding layer gets back what it can still read
            assert (mine - theirs).norm() / theirs.norm() < 0.25


def stacked_calls(model, tokens):
    """Keys (after RoPE) and values of every layer at full length, sliding windows or not."""
    from spectralquant.hooks.tap import AttentionTap

    calls = []
    with torch.no_grad(), AttentionTap(model, calls.append):
        model(input_ids=tokens, use_cache=False)
    return [(c.key, c.value) for c in calls]


def test_packet_has_both_kinds_of_sections(small, profile):
    kinds = [s.kind for s in pack_prompt(small.model, profile, ids(600))[0].sections]
    assert kinds[0] == EXACT and kinds[-1] == EXACT and kinds.count(CODED) == 3


def test_a_packet_is_its_bytes(small, profile):
    packet = pack_prompt(small.model, profile, ids(600))[0]
    data = bytes(packet)
    assert len(data) == len(packet) == packet.nbytes
    same = unpack_cache(small.model, profile, packet).layers[1].keys
    assert torch.equal(unpack_cache(small.model, profile, data).layers[1].keys, same)
    cache = SpectralCache.unpack(small.model, profile, data)
    assert cache.get_seq_length() == 600
    with pytest.raises(PacketError):
        unpack_cache(small.model, profile, data[:-1])
