"""Each rival against something outside this repository: its paper's figures, a dense computation, another library."""

import copy
import importlib.util
import math
from dataclasses import replace

import pytest
import torch
from conftest import profile_of
from profiles_for_tests import random_block
from transformers import DynamicCache

from spectralquant.codec.turboquant import TurboProductQuantizer, TurboQuantizer
from spectralquant.errors import InputError
from spectralquant.evaluation.streaming import stream_window
from spectralquant.geometry import CacheGeometry
from spectralquant.methods.coding.fp8 import Fp8
from spectralquant.methods.coding.kivi import Kivi, quantize_groups
from spectralquant.methods.coding.kvtc import allocate, dequantize_rows, quantize_rows
from spectralquant.methods.coding.turboquant import TurboQuant
from spectralquant.methods.eviction.expected_attention import ExpectedAttention
from spectralquant.methods.eviction.h2o import H2O
from spectralquant.methods.eviction.scissorhands import Scissorhands
from spectralquant.methods.eviction.snapkv import SnapKV
from spectralquant.methods.eviction.streaming_llm import StreamingLLM
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize


def unit_vectors(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("bits", "published"), [(1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)])
def test_turboquant_reaches_its_papers_distortion(bits, published):
    """arXiv 2504.19874, theorem 1: mean squared error of unit vectors at 1 to 4 bits."""
    x = unit_vectors(4000, 128)
    quantizer = TurboQuantizer(128, bits)
    error = (quantizer.decode(quantizer.encode(x)) - x).square().sum(1).mean().item()
    assert error == pytest.approx(published, rel=0.16)
    assert error <= math.sqrt(3) * math.pi / 2 / 4**bits, "the theorem's upper bound"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_inner_product_variant_is_unbiased(bits):
    """Algorithm 2: averaged over sketches <x̂, q> is <x, q>, where the MSE variant shrinks it."""
    x, q = unit_vectors(1, 64), unit_vectors(1, 64, 1) + unit_vectors(1, 64)
    exact = float((x * q).sum())
    found, shrunk = [], []
    for seed in range(600):
        prod, mse = TurboProductQuantizer(64, bits, seed), TurboQuantizer(64, bits - 1, seed)
        found.append(float((prod.decode(prod.encode(x)) * q).sum()))
        shrunk.append(float((mse.decode(mse.encode(x)) * q).sum()))
    error = torch.tensor(found).std().item() / math.sqrt(len(found))
    assert abs(sum(found) / len(found) - exact) < 3.5 * error
    assert sum(shrunk) / len(shrunk) < exact - 3.5 * error


@pytest.mark.parametrize(("bits", "between"), [(2.5, (2.0, 3.0)), (3.5, (3.0, 4.0))])
def test_half_bits_lie_between_whole_ones(bits, between):
    block = random_block(0, 128, 1.0)
    block.keys[..., :4] *= 8.0

    def measured(b):
        method = TurboQuant(16, b)
        coded = method.encode(block)
        _keys, values = method.decode(coded)
        return coded.nbytes, float((values - block.values).square().mean())

    (low_bytes, low_error), (size, error), (high_bytes, high_error) = map(measured, (between[0], bits, between[1]))
    assert low_bytes < size < high_bytes * 1.3
    assert high_error < error < low_error


def dense_probabilities(model, ids):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(input_ids=ids[None], output_attentions=True, use_cache=False).attentions
    return torch.stack([p[0] for p in found])


class Recorded:
    """Runs a method without evicting anything, and keeps what it would have chosen at each step."""

    exact_bits, name, options = 16, "recorded", {}

    def __init__(self, method):
        self.method, self.mode, self.choices = method, method.mode, []
        self.reads_content = method.reads_content

    def choose(self, history, held, length):
        self.choices.append(self.method.choose(history, torch.ones_like(held), length))
        return held

    def held_bytes(self, kept, geometry):
        return 1


EVICTORS = [H2O(0.25), SnapKV(0.25), StreamingLLM(0.25), Scissorhands(0.25)]


@pytest.mark.parametrize("mode", ["streaming", "prompt"])
@pytest.mark.parametrize("method", EVICTORS, ids=lambda m: m.name)
def test_selections_equal_a_dense_computation(method, mode):
    """From full attention matrices of the eager model, on real text: a budget of a quarter of the whole length."""
    loaded, _ = profile_of("llama")
    ids = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 2000).windows(768, 1)[0]
    recorded = Recorded(replace(method, mode=mode))
    length = 600 if mode == "prompt" else 768
    stream_window(loaded.model, loaded.geometry, ids, [recorded], prompt=length if mode == "prompt" else 0)
    p = dense_probabilities(copy.deepcopy(loaded.model), ids)
    layers, heads, kv = p.shape[0], p.shape[1], loaded.geometry.kv_heads
    grouped = p.view(layers, kv, heads // kv, *p.shape[2:])
    budget = length // 4
    steps = [128 * (i + 1) for i in range(6)] if mode == "streaming" else [600]
    assert len(recorded.choices) == len(steps)
    for seen, chosen in zip(steps, recorded.choices, strict=True):
        assert chosen.shape[-1] == seen
        if seen <= budget:
            assert bool(chosen.all()), "nothing is dropped before the budget is full"
            continue
        part, age = grouped[..., :seen, :seen], seen - 1 - torch.arange(seen)
        if method.name == "h2o":
            scores = part.sum((2, 3)).masked_fill(age < budget - budget // 2, torch.inf)
        elif method.name == "snapkv":
            votes = torch.nn.functional.pad(part[..., -64:, :-64].mean((2, 3)), (2, 2))
            pooled = torch.stack([votes[..., i : i + 5].mean(-1) for i in range(seen - 64)], -1)
            scores = torch.cat([pooled, torch.full((layers, kv, 64), torch.inf)], -1)
        elif method.name == "scissorhands":
            first = max(0, seen - 384)
            unimportant = part.mean(2) <= 1 / torch.arange(1, seen + 1)[:, None]
            read = torch.ones(seen, seen, dtype=torch.bool).tril()
            scores = -(unimportant & read)[:, :, first:].sum(2).float() - 1e-5 * age
            scores = scores.masked_fill(age < 10, torch.inf)
        else:
            scores = torch.arange(seen).float().index_fill(0, torch.arange(4), torch.inf).expand(layers, kv, -1)
        expected = torch.zeros_like(chosen).scatter_(-1, scores.topk(budget).indices, True)
        assert (chosen == expected).float().mean() > 0.995, "equal up to ties of float rounding"
        assert chosen.sum(-1).unique().tolist() == [budget]


@torch.no_grad()
def test_expected_attention_equals_its_formula_written_out():
    """Every streaming choice, from projections of the model itself and rotation matrices averaged over 512 positions to come."""
    loaded, _ = profile_of("llama")
    model, g = loaded.model, loaded.geometry
    ids = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 1000).windows(512, 1)[0]
    recorded = Recorded(ExpectedAttention(0.25))
    stream_window(model, g, ids, [recorded])
    projected, cache = [], DynamicCache()
    hooks = [
        x.self_attn.q_proj.register_forward_hook(lambda m, a, o: projected.append(o[0])) for x in model.model.layers
    ]
    model(input_ids=ids[None], past_key_values=cache)
    for hook in hooks:
        hook.remove()
    half = g.head_dim // 2
    swap = torch.zeros(g.head_dim, g.head_dim)
    swap[:half, half:], swap[half:, :half] = -torch.eye(half), torch.eye(half)
    assert len(recorded.choices) == 4
    for seen, chosen in zip((128, 256, 384, 512), recorded.choices, strict=True):
        cos, sin = (x[0] for x in model.model.rotary_emb(torch.zeros(1), torch.arange(seen, seen + 512)[None]))
        turn = (cos[:, :, None] * torch.eye(g.head_dim) + sin[:, :, None] * swap).mean(0)
        if seen == 128:
            assert bool(chosen.all()), "nothing is dropped before the budget is full"
            continue
        for layer in range(g.layers):
            queries = projected[layer].view(-1, g.heads, g.head_dim)[4:seen].double()
            for head in range(g.kv_heads):
                keys, values = (
                    x[0, head, :seen].double() for x in (cache.layers[layer].keys, cache.layers[layer].values)
                )
                weights = 0
                for query in queries[:, head * g.group : (head + 1) * g.group].unbind(1):
                    mean, spread = query.mean(0) @ turn.double().T, turn.double() @ torch.cov(query.T, correction=0)
                    spread = spread @ turn.double().T
                    expected = keys @ mean / g.head_dim**0.5 + ((keys @ spread) * keys).sum(1) / 2 / g.head_dim
                    weights = weights + expected[4:].softmax(0)
                best = {0, 1, 2, 3, *(4 + (weights * values[4:].norm(dim=1)).topk(124).indices).tolist()}
                assert len(best ^ set(chosen[layer, head].nonzero().squeeze(1).tolist())) <= 2, "up to a tie"


@pytest.mark.gpu
def test_expected_attention_chooses_on_a_gpu_what_it_chooses_on_a_cpu():
    loaded, _ = profile_of("llama")
    ids = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 2000).windows(768, 1)[0]
    choices = []
    for device in ("cpu", "cuda"):
        recorded = Recorded(ExpectedAttention(0.25))
        stream_window(copy.deepcopy(loaded.model).to(device), loaded.geometry, ids, [recorded])
        choices.append(torch.cat([chosen.cpu().flatten() for chosen in recorded.choices]))
    assert (choices[0] == choices[1]).float().mean() > 0.995, "equal up to ties of float rounding"


def test_what_expected_attention_remembers_of_queries_is_counted():
    """In streaming mode mean and half of the covariance of every head, in float32; nothing once a prompt has been read."""
    geometry = CacheGeometry(layers=2, heads=4, kv_heads=2, head_dim=16, rotary=(True, True))
    kept = torch.ones(2, 2, 10, dtype=torch.bool)
    entries = 2 * 2 * 10 * 2 * 2 * 16
    assert ExpectedAttention(mode="prompt").held_bytes(kept, geometry) == entries
    assert ExpectedAttention().held_bytes(kept, geometry) == entries + 2 * 4 * (16 + 16 * 17 // 2) * 4
    with pytest.raises(InputError, match="future=0 must be positive"):
        ExpectedAttention(future=0)


def test_outlier_channels_of_the_paper_do_not_save_keys_with_huge_channels_but_fine_ones_do():
    """A pair of channels 30 times as large as the rest, as Qwen2.5's biases make them: relative error of the other channels."""
    block = random_block(0, 128, 1.0)
    block.keys[..., [7, 15]] *= 30.0
    small = [i for i in range(16) if i not in (7, 15)]

    def error(**options):
        keys, _values = (method := TurboQuant(16, **options)).decode(method.encode(block))
        return float((keys - block.keys)[..., small].norm() / block.keys[..., small].norm())

    assert error(bits=3) > 1, "the norm of the huge channels swallows the others"
    assert error(bits=2, outliers=0.25) > 0.5
    assert error(bits=3, outliers=0.125, outlier_bits=8) < 0.3


def test_kivi_groups_as_in_its_paper():
    """Section 4: keys share scale and zero per channel over 32 tokens, values per token over 32 channels."""
    block = random_block(1, 124, 1.0)
    method = Kivi(bits=2, group=16)
    coded = method.encode(block)
    assert coded.keys.scale.shape == (7, 2, 2, 16, 1), "7 groups of 16 tokens, one scale a channel"
    assert coded.rest.shape == (12, 2, 2, 16), "tokens that fill no group stay in full precision"
    assert coded.values.scale.shape == (124, 2, 2, 1, 1)
    keys, values = method.decode(coded)
    x = block.values[0, 0, 0]
    step = (x.max() - x.min()) / 3
    levels = (x - x.min()) / step
    assert torch.allclose(values[0, 0, 0], x.min() + levels.round() * step, atol=5e-3)
    assert keys.shape == block.keys.shape
    exact = quantize_groups(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), 2)
    assert exact.values().tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_kvtc_allocation_beats_equal_widths():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 256, generator=generator) * (0.97 ** torch.arange(256)) * 10
    groups = allocate(samples, 256 * 2)
    spent = sum((g.stop - g.start) * g.bits + 32 for g in groups)
    assert spent <= 512
    assert groups[0].bits >= groups[-1].bits
    planned = torch.zeros_like(samples)
    for g in groups:
        y = samples[:, g.start : g.stop]
        planned[:, g.start : g.stop] = dequantize_rows(*quantize_rows(y, g.bits))
    flat = dequantize_rows(*quantize_rows(samples, 2))
    assert (planned - samples).square().sum() < 0.2 * (flat - samples).square().sum()


def test_fp8_rounds_as_the_format_does():
    block = random_block(2, 128, 1.0)
    _keys, values = Fp8().decode(Fp8().encode(block))
    assert float(((values - block.values).abs() / block.values.abs().clamp_min(0.05)).max()) <= 2**-4 + 1e-3


@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="optimum-quanto is not installed")
@pytest.mark.parametrize("bits", [2, 4])
def test_hf_quantized_is_bit_equal_to_transformers(bits):
    from dataclasses import replace

    from transformers.cache_utils import QuantoQuantizedLayer

    from spectralquant.methods.coding.hf_quantized import HfQuantized

    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(128, 2, 3, 64, generator=generator) for _ in range(2)]
    block = replace(random_block(0, 128, 1.0), keys=pair[0], values=pair[1], rotations=(None, None))
    method = HfQuantized(bits=bits)
    keys, values = method.decode(method.encode(block))
    for layer in range(2):
        theirs = QuantoQuantizedLayer(nbits=bits, residual_length=1)
        tensors = [x[:, layer].transpose(0, 1)[None].contiguous() for x in pair]
        theirs.update(*tensors)
        empty = tensors[0][:, :, :0]
        read = theirs.update(empty, empty)
        for mine, other in zip((keys, values), read, strict=True):
            assert torch.equal(mine[:, layer].transpose(0, 1)[None], other)


def test_a_missing_backend_is_named():
    from spectralquant.methods.coding.hf_quantized import HfQuantized

    if importlib.util.find_spec("hqq") is None:
        with pytest.raises(InputError, match="needs the package hqq"):
            HfQuantized(backend="hqq").layer()
    with pytest.raises(InputError, match="not one of"):
        HfQuantized(backend="other")
