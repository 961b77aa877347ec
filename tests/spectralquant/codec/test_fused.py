"""Fused decoding and encoding against the plain codec: the same tensors, wherever a cache holds them."""

import dataclasses

import numpy as np
import pytest
import torch
from profiles_for_tests import GEOMETRY, random_block, random_codec

from spectralquant.codec.block import KVBlock
from spectralquant.codec.block_rotary import rotate_block_keys
from spectralquant.codec.cold.fused.bases import FactoredBasis, bases_of
from spectralquant.codec.cold.fused.decode import FusedDecoder
from spectralquant.codec.cold.fused.encode import BlockRun, FusedEncoder
from spectralquant.codec.cold.fused.layer_slots import LayerSlots, groups_of, turns_of
from spectralquant.codec.cold.importance import ImportanceModel
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.errors import PacketError
from spectralquant.profile.factors import BasisFactors, IntegerRows, SmallForm
from sqkernels.spectral_rows import TokenSlots

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "triton") if DEVICE == "cpu" else ("triton",)
PREDICTED = 24


def codecs(spans=1, predict=False):
    """The random codec with float16 products, and with float32 ones on the CPU; bases of `spans` groups each."""
    tier = random_codec().tier
    bases = {}
    for kind in ("key", "value"):
        basis = getattr(tier, kind)
        if spans > 1:
            width = 64 // spans
            rows = torch.linalg.qr(torch.randn(spans, width, width))[0].flatten(0, 1)[: len(basis.gain)].half()
            ranks = torch.tensor([width] * (len(rows) // width) + [len(rows) % width] * (len(rows) % width > 0))
            ranks = torch.cat([ranks, torch.zeros(spans - len(ranks), dtype=torch.int64)])
            basis = dataclasses.replace(basis, analysis=rows, synthesis=rows, ranks=ranks)
        if predict:
            basis = dataclasses.replace(basis, predictor=(torch.randn(2 * PREDICTED, 64) / 20).half())
        bases[kind] = basis
    tier = dataclasses.replace(tier, **bases)
    embedding = torch.randn(300, PREDICTED) if predict else None
    plain = SpectralCodec(tier, GEOMETRY, embedding, dtype=torch.float32)
    return SpectralCodec(tier, GEOMETRY, embedding, DEVICE, dtype=torch.float16), plain


def some_blocks(lengths, predict=False):
    out = []
    for i, n in enumerate(lengths):
        block = random_block(i, n, 1.0)
        ids = torch.from_numpy(np.random.default_rng(i).integers(0, 300, n)) if predict else None
        out.append(dataclasses.replace(block, token_ids=ids, previous_id=i - 1 if predict else -1))
    return out


def in_a_cache(blocks, dtype=torch.float32):
    """Keys after RoPE and values of blocks, scattered over a cache of two sequences; and where."""
    total = sum(b.tokens for b in blocks)
    tokens = torch.randperm(total + 9, generator=torch.Generator().manual_seed(0))[:total]
    rows = torch.arange(total) % 2
    keys, values = (torch.full((2, 2, 2, total + 9, 16), 9.0, dtype=dtype) for _ in range(2))
    plain = torch.cat([rotate_block_keys(b, b.keys) for b in blocks]), torch.cat([b.values for b in blocks])
    for layer in range(2):
        keys[layer, rows, :, tokens], values[layer, rows, :, tokens] = (x[:, layer].to(dtype) for x in plain)
    keys, values = keys.to(DEVICE), values.to(DEVICE)
    angles = [torch.cat([getattr(b.rotations[0], n) for b in blocks]).to(DEVICE) for n in ("cos", "sin")]
    turns = turns_of([dataclasses.replace(blocks[0].rotations[0], cos=angles[0], sin=angles[1]), None])
    slots = TokenSlots.dense(keys[0], rows.to(DEVICE), tokens.to(DEVICE))
    return LayerSlots.of(list(keys), list(values), slots, turns), (rows, tokens)


def pairs_of(blocks):
    return [None if b.token_ids is None else (b.previous_id, b.token_ids.numpy()) for b in blocks]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spans", "predict"), [(1, False), (2, True), (4, False)])
def test_fused_decoding_gives_what_the_codec_gives(backend, spans, predict):
    half, plain = codecs(spans, predict)
    blocks = some_blocks((128, 50, 128, 1), predict)
    data = plain.encode_run(blocks)
    decoder = FusedDecoder(half, backend)
    assert all(map(decoder.takes, data))
    places, (rows, tokens) = in_a_cache(blocks)
    for cache in (*places.keys.tensors, *places.values.tensors):
        cache.fill_(7.0)
    seen = []
    decoder.write(decoder.decode(data), places, seen.append)
    assert seen == [0, 1]
    expected = [plain.decode(d) for d in data]
    keys = torch.cat([rotate_block_keys(b, k) for b, (k, _) in zip(blocks, expected, strict=True)])
    values = torch.cat([v for _, v in expected])
    for layer in range(2):
        for found, wanted in ((places.keys, keys), (places.values, values)):
            found = found.tensors[layer].cpu()
            assert torch.allclose(found[rows, :, tokens], wanted[:, layer], atol=0.02)
            untouched = torch.ones(found.shape[0], found.shape[2], dtype=torch.bool)
            untouched[rows, tokens] = False
            assert (found.transpose(1, 2)[untouched] == 7.0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spans", "predict", "observed"), [(1, False, True), (2, True, False), (4, False, True)])
def test_fused_encoding_gives_the_codecs_symbols(backend, spans, predict, observed):
    half, plain = codecs(spans, predict)
    blocks = some_blocks((128, 50, 128, 1), predict)
    if not observed:
        blocks = [dataclasses.replace(b, received=None) for b in blocks]
    received = torch.cat([b.received for b in blocks]).to(DEVICE) if observed else None
    places, _ = in_a_cache(blocks)
    run = BlockRun(places, [b.tokens for b in blocks], pairs_of(blocks), received)
    encoder = FusedEncoder(half, backend)
    symbols, classes, bad = encoder.symbols(run)
    expected = plain.quantized(blocks)
    assert not bad.any()
    assert torch.equal(classes.T.cpu().long(), expected.classes)
    differ = (symbols.cpu().int() - expected.symbols).abs()
    assert differ.max() <= 1
    assert (differ > 0).float().mean() < 0.01
    data = encoder.encode(run)
    for block, one in zip(blocks, data, strict=True):
        keys, values = plain.decode(one)
        again = plain.decode(plain.encode(block))
        assert (keys - again[0]).abs().max() < 2.5
        assert (keys - block.keys).square().mean() < 1.02 * (again[0] - block.keys).square().mean() + 1e-4
        assert (values - block.values).square().mean() < 1.02 * (again[1] - block.values).square().mean() + 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_coded_is_left_to_the_caller(backend):
    half, _ = codecs()
    blocks = some_blocks((64, 64, 64))
    keys = blocks[1].keys.clone()
    keys[5, 0, 0, 0] = float("nan")
    far = dataclasses.replace(blocks[2], keys=blocks[2].keys * 1e5)
    blocks = [blocks[0], KVBlock(keys, blocks[1].values, 4, rotations=blocks[1].rotations), far]
    places, _ = in_a_cache(blocks)
    run = BlockRun(places, [64] * 3, [None] * 3)
    data = FusedEncoder(half, backend).encode(run)
    assert data[0] is not None
    assert data[1:] == [None, None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_huge_coefficients_do_not_overflow(backend):
    half, plain = codecs()
    blocks = some_blocks((40,))
    blocks = [dataclasses.replace(b, keys=b.keys * 3e4, values=b.values) for b in blocks]
    data = plain.encode_run(blocks)
    decoder = FusedDecoder(half, backend)
    if not decoder.takes(data[0]):
        pytest.skip("stored raw")
    places, (rows, tokens) = in_a_cache(blocks)
    run = decoder.decode(data)
    assert run.factor > 1
    decoder.write(run, places)
    wanted = rotate_block_keys(blocks[0], plain.decode(data[0])[0])[:, 0]
    found = places.keys.tensors[0].cpu()[rows, :, tokens]
    assert (found - wanted).norm() / wanted.norm() < 1e-3


def test_damaged_blocks_are_refused_before_anything_is_written():
    half, plain = codecs()
    data = bytearray(plain.encode(random_block(0, 128, 1.0)))
    data[-300] ^= 1
    decoder = FusedDecoder(half, BACKENDS[-1])
    with pytest.raises(PacketError):
        decoder.decode([bytes(data)])


def test_groups_of_columns_cover_each_column_once():
    found = list(groups_of([3, 0, 2, 4], 8, slice(4, 28)))
    assert found == [
        (slice(0, 3), slice(4, 8), 0),
        (slice(3, 3), slice(0, 8), 4),
        (slice(3, 5), slice(0, 8), 12),
        (slice(5, 9), slice(0, 4), 20),
    ]


def factored_codecs(inner=12):
    """The random codec with a basis in product form, two layers of `inner` components each."""
    tier, bases = random_codec().tier, {}
    for kind in ("key", "value"):
        generator = torch.Generator().manual_seed(len(kind))
        blocks = [torch.linalg.qr(torch.randn(32, inner, generator=generator))[0].T * 3 for _ in range(2)]
        outer = torch.linalg.qr(torch.randn(2 * inner, 2 * inner, generator=generator))[0]
        parts = IntegerRows.of(torch.cat(blocks), 2 * inner), IntegerRows.of(outer, 4)
        factors = BasisFactors(parts[0], parts[0], torch.tensor([inner, inner]), parts[1], parts[1])
        small = SmallForm((factors,), IntegerRows.of(torch.zeros(0, 0), 0))
        rows, count = small.rows("synthesis"), 2 * inner
        old = getattr(tier, kind)
        bases[kind] = dataclasses.replace(
            old,
            analysis=small.rows("analysis"),
            synthesis=rows,
            gain=old.gain[:count],
            back=old.back[:count],
            variance=old.variance[:count],
            ranks=torch.tensor([count]),
            small=small,
        )
        bases[f"{kind}_choice"] = getattr(tier, f"{kind}_choice")[:, :count].contiguous()
        bases[f"{kind}_centroid"] = getattr(tier, f"{kind}_centroid")[:count]
    tier = dataclasses.replace(tier, **bases)
    plain = SpectralCodec(tier, GEOMETRY, None, dtype=torch.float32)
    return SpectralCodec(tier, GEOMETRY, None, DEVICE, dtype=torch.float16), plain


def test_bases_in_product_form_code_as_dense_ones_do():
    half, plain = factored_codecs()
    assert all(isinstance(b, FactoredBasis) for b in bases_of(half))
    blocks = some_blocks((128, 50))
    places, (rows, tokens) = in_a_cache(blocks)
    run = BlockRun(places, [b.tokens for b in blocks], pairs_of(blocks))
    symbols, _, bad = FusedEncoder(half).symbols(run)
    expected = plain.quantized([dataclasses.replace(b, received=None) for b in blocks])
    differ = (symbols.cpu().int() - expected.symbols).abs()
    assert not bad.any() and differ.max() <= 1 and (differ > 0).float().mean() < 0.01
    data = plain.encode_run(blocks)
    decoder = FusedDecoder(half)
    decoder.write(decoder.decode(data), places)
    decoded = [plain.decode(d) for d in data]
    keys = torch.cat([rotate_block_keys(b, k) for b, (k, _) in zip(blocks, decoded, strict=True)])
    values = torch.cat([v for _, v in decoded])
    for found, wanted in ((places.keys, keys), (places.values, values)):
        for layer in range(2):
            assert torch.allclose(found.tensors[layer].cpu()[rows, :, tokens], wanted[:, layer], atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_that_is_not_known_makes_a_run_unseen(backend):
    half, _ = codecs(1, False)
    blocks = some_blocks((128, 50), False)
    received = torch.cat([b.received for b in blocks]).to(DEVICE)
    weight = torch.randn(received[0].numel() + 2, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    half.importance = ImportanceModel(weight, torch.zeros(2, device=DEVICE))
    classes = []
    for given in (received, received.index_fill(0, torch.tensor([3], device=DEVICE), torch.nan)):
        run = BlockRun(in_a_cache(blocks)[0], [b.tokens for b in blocks], pairs_of(blocks), given)
        classes.append(FusedEncoder(half, backend).symbols(run)[1])
    assert (classes[0] != half.coder.unseen).any() and (classes[1] == half.coder.unseen).all()
