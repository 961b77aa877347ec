"""Every tier on a GPU: the CPU's numbers in every precision, from device and host pages, by kernels and without."""

import copy

import pytest
import torch
from gpu_for_tests import GPU, PROMPT, TIERS, distance, filled, model_on, prompt, read, steps
from transformers import DynamicCache

from spectralquant import SpectralCache, svd_reconstruct_attention
from spectralquant.errors import InputError
from sqkernels.dense_decode.reference import dense_decode

pytestmark = pytest.mark.gpu
NEXT = prompt(3, seed=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_reads_as_on_the_cpu(tier, dtype):
    there, profile = model_on(GPU, dtype)
    here, _ = model_on("cpu")
    expected = steps(here, filled(here, profile, tier), NEXT)
    found = steps(there, filled(there, profile, tier), NEXT)
    assert found.device.type == "cuda" and found.dtype == dtype
    assert distance(found, expected) < (0.03 if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tier", ["exact", "hot", "warm"])
def test_host_pages_hold_the_same_codes(tier, dtype):
    """Codes in pinned host memory are read as from device memory, bit for bit, and come back from a crop."""
    model, profile = model_on(GPU, dtype)
    device, host = (filled(model, profile, tier, host=host, kernels="torch") for host in (False, True))
    page = host.state.sequences[0][0].payload.data
    assert page.device.type == "cpu" and page.is_pinned()
    assert device.state.sequences[0][0].payload.data.is_cuda
    assert torch.equal(steps(model, host, NEXT), steps(model, device, NEXT))
    for cache in (host, device):
        cache.crop(-300)
    assert torch.equal(steps(model, host, NEXT), steps(model, device, NEXT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernels_read_what_torch_reads(dtype):
    model, profile = model_on(GPU, dtype)
    caches = {k: filled(model, profile, "hot", rows=2, kernels=k) for k in ("triton", "torch")}
    mine, theirs = (steps(model, cache, prompt(3, 2, seed=6)) for cache in caches.values())
    assert distance(mine, theirs) < (5e-3 if dtype == torch.float32 else 3e-2)
    layers = len(caches["triton"].layers)
    assert caches["triton"].stats().spent.kernel_reads == 3 * layers
    assert caches["torch"].stats().spent.kernel_reads == 0
    assert caches["torch"].stats().spent.in_place_reads >= 3 * layers


def test_kernels_are_used_by_themselves():
    model, profile = model_on(GPU, torch.bfloat16)
    cache = filled(model, profile, "auto")
    steps(model, cache, NEXT)
    assert cache.stats().spent.kernel_reads == 3 * len(cache.layers)
    assert cache.stats().spent.kernel_refusal is None


def test_a_selection_reads_less_and_everything_is_everything():
    model, profile = model_on()
    whole = steps(model, filled(model, profile, "hot"), NEXT)
    errors = [distance(steps(model, filled(model, profile, "hot", select=s), NEXT), whole) for s in (1.0, 0.5, 0.1)]
    assert errors[0] < 1e-3 < errors[1] < errors[2]
    with pytest.raises(InputError, match="needs kernels"):
        SpectralCache(model, profile, tier="hot", select=0.5, host=True)


@pytest.mark.parametrize("tier", TIERS)
def test_one_layer_by_itself(tier):
    model, profile = model_on(GPU, torch.bfloat16)
    cache = filled(model, profile, tier)
    heads, dim = cache.geometry.heads, cache.geometry.head_dim
    query = torch.randn(1, heads, dim, generator=torch.Generator().manual_seed(1)).to(GPU, torch.bfloat16)
    want = dense_decode(query, *cache.view(1).dense(), dim**-0.5, torch.float64)
    assert distance(svd_reconstruct_attention(query, cache, 1), want) < 2e-2


@pytest.mark.parametrize("removed", [1, 130, 300, 690])
@pytest.mark.parametrize("tier", TIERS)
def test_crop_as_on_the_cpu(tier, removed):
    (there, profile), (here, _) = model_on(), model_on("cpu")
    found = []
    for model in (there, here):
        cache = filled(model, profile, tier)
        cache.crop(-removed)
        assert cache.get_seq_length() == PROMPT - removed
        found.append(steps(model, cache, NEXT))
    assert distance(*found) < 0.02
    if tier == "exact":
        plain = DynamicCache(config=there.config)
        read(there, plain, prompt()[:, : PROMPT - removed])
        assert distance(found[0], steps(there, plain, NEXT)) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tier", TIERS)
def test_rows_are_reordered_and_selected(tier, dtype):
    model, profile = model_on(GPU, dtype)
    cache = filled(model, profile, tier, rows=3)
    before = read(model, copy.deepcopy(cache), prompt(1, 3, seed=2))
    order = torch.tensor([2, 0, 0], device=GPU)
    cache.reorder_cache(order)
    after = read(model, cache, prompt(1, 3, seed=2)[order.cpu()])
    assert distance(after, before[order]) < (1e-3 if dtype == torch.float32 else 5e-2)
    assert cache.state.sequences[1][0] is cache.state.sequences[2][0], "equal rows share their blocks"
    cache.batch_select_indices(torch.tensor([True, False, True], device=GPU))
    cache.batch_repeat_interleave(2)
    assert (cache.batch_size, cache.get_seq_length()) == (4, PROMPT + 1)
    assert read(model, cache, prompt(1, 4, seed=3)).isfinite().all()


@pytest.mark.parametrize("host", [False, True])
def test_blocks_move_down_with_age(host):
    model, profile = model_on(GPU, torch.bfloat16)
    cache = filled(model, profile, "exact", tokens=1200, ages={"hot": 200, "warm": 500, "cold": 800}, host=host)
    assert set(cache.stats().tiers) == set(TIERS)
    assert cache.stats().spent.demotions > 0
    plain = DynamicCache(config=model.config)
    read(model, plain, prompt(1200))
    assert distance(steps(model, cache, NEXT), steps(model, plain, NEXT)) < 0.6


def test_a_working_set_changes_no_number():
    model, profile = model_on()
    for tier in ("warm", "cold"):
        plain, kept = filled(model, profile, tier), filled(model, profile, tier, working_set=200_000)
        assert 0 < kept.stats().working_set_bytes <= 200_000
        assert distance(steps(model, kept, NEXT), steps(model, plain, NEXT)) < 2e-3


@pytest.mark.parametrize("tier", TIERS)
def test_a_dropped_cache_leaves_no_memory_behind(tier):
    model, profile = model_on(GPU, torch.bfloat16)
    for _ in range(2):  # the first makes codecs, which stay with the profile
        before = torch.cuda.memory_allocated()
        cache = filled(model, profile, tier, background=tier == "cold")
        steps(model, cache, NEXT)
        assert torch.cuda.memory_allocated() > before
        del cache
        torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 1024
