"""A cache whose hot codes are rows, read by kernels: the same tokens as torch reads, and no silent fallback."""

import copy

import pytest
import torch
from conftest import profile_of

from spectralquant import SpectralCache
from spectralquant.codec.hot.codec import HotCodec
from spectralquant.codec.hot.linear import row_matrices
from spectralquant.codec.hot.pages import bands_to_rows, rows_to_bands
from spectralquant.errors import InputError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def setting(architecture="llama"):
    loaded, profile = profile_of(architecture, num_hidden_layers=2)
    return copy.deepcopy(loaded.model).to(DEVICE), profile


def logits(model, profile, kernels, batch=1, steps=1, **options):
    ids = torch.randint(5, 500, (batch, 420), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    cache = SpectralCache(model, profile, tier="hot", kernels=kernels, **options)
    out = []
    with torch.no_grad():
        model(input_ids=ids[:, :400], past_key_values=cache)
        for step in range(400, 400 + steps):
            out.append(model(input_ids=ids[:, step : step + 1], past_key_values=cache).logits)
    return torch.cat(out, dim=1), cache


@pytest.mark.parametrize(("architecture", "batch"), [("llama", 2), ("qwen2", 1), ("phi3", 1)])
@pytest.mark.slow
def test_kernels_read_what_torch_reads(architecture, batch):
    model, profile = setting(architecture)
    mine, cache = logits(model, profile, "triton", batch, steps=2)
    theirs, other = logits(model, profile, "torch", batch, steps=2)
    assert float((mine - theirs).norm() / theirs.norm()) < 5e-3
    layers = len(cache.layers)
    assert cache.stats().spent.kernel_reads == 2 * layers and cache.stats().spent.in_place_reads == 0
    assert other.stats().spent.in_place_reads == 2 * layers and other.stats().spent.kernel_reads == 0


@pytest.mark.slow
def test_a_selection_of_everything_is_everything_and_more_is_closer():
    model, profile = setting()
    whole, _ = logits(model, profile, "triton")
    errors = []
    for select in (1.0, 0.9, 0.25, 10):
        part, cache = logits(model, profile, "triton", select=select)
        errors.append(float((part - whole).norm() / whole.norm()))
        assert cache.stats().spent.kernel_reads == len(cache.layers)
    assert errors[0] < 1e-3 and errors == sorted(errors) and errors[1] > 1e-3


@pytest.mark.slow
def test_a_selecting_cache_survives_a_snapshot(tmp_path):
    """Codes come back bit for bit; the index is made anew from them, so that a selection may differ."""
    model, profile = setting()
    _, cache = logits(model, profile, "triton", select=0.5)
    cache.save(tmp_path / "cache.sqc")
    back = SpectralCache.load(tmp_path / "cache.sqc", model, profile)
    assert back.options["select"] == 0.5
    for a, b in zip(cache.view(1).dense(), back.view(1).dense(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        a, b = (model(input_ids=torch.full((1, 1), 7, device=DEVICE), past_key_values=c).logits for c in (cache, back))
    assert float((a - b).norm() / a.norm()) < 0.2
    assert back.stats().spent.kernel_reads == len(back.layers)


@pytest.mark.parametrize("select", [0.0, 1.5, 0, -3])
def test_wrong_selections_are_refused(select):
    model, profile = setting()
    with pytest.raises(InputError, match="must be a share"):
        SpectralCache(model, profile, tier="hot", kernels="triton", select=select)
    with pytest.raises(InputError, match="needs kernels"):
        SpectralCache(model, profile, tier="hot", kernels="torch", select=0.5)


@pytest.mark.slow
def test_rows_hold_about_what_bands_hold():
    model, profile = setting()
    rows, bands = (logits(model, profile, kernels)[1].stats() for kernels in ("triton", "torch"))
    assert bands.tiers["hot"].bytes <= rows.tiers["hot"].bytes <= 1.6 * bands.tiers["hot"].bytes


def test_pages_change_layout_without_loss():
    loaded, profile = profile_of("llama")
    tier, geometry = profile.tier("hot"), loaded.geometry
    codec = HotCodec(tier, geometry)
    matrices = row_matrices(tier, geometry, range(geometry.layers), "cpu")
    size = sum(m.layout.row_bytes for pair in codec.layers for m in pair) * 128
    page = []
    for pair in codec.layers:
        for m in pair:
            codes = torch.stack([torch.randint(0, int(t) + 1, (128,)) for t in m.top], dim=1).to(torch.uint8)
            page.append(m.pack(codes).reshape(-1))
    bands = torch.cat(page)
    assert len(bands) == size
    assert torch.equal(rows_to_bands(bands_to_rows(bands, matrices, codec), matrices, codec), bands)


@pytest.mark.slow
def test_a_snapshot_moves_between_layouts(tmp_path):
    model, profile = setting()
    _, cache = logits(model, profile, "triton")
    cache.save(tmp_path / "cache.sqc")
    back = SpectralCache.load(tmp_path / "cache.sqc", model, profile)
    token = torch.full((1, 1), 7, device=DEVICE)
    with torch.no_grad():
        a = model(input_ids=token, past_key_values=cache).logits
        b = model(input_ids=token, past_key_values=back).logits
    assert float((a - b).norm() / a.norm()) < 1e-4


def masked(model, profile, kernels, mask, new=2, **options):
    """Logits of `new` queries in one pass after a prompt of 400, and the cache. mask: `[B, 400 + new]`, 2D or 4D."""
    ids = torch.randint(5, 500, (2, 400 + new), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    cache = SpectralCache(model, profile, tier="hot", kernels=kernels, **options)
    with torch.no_grad():
        model(input_ids=ids[:, :400], past_key_values=cache, attention_mask=None if mask is None else mask[:, :400])
        out = model(input_ids=ids[:, 400:], past_key_values=cache, attention_mask=mask).logits
    return out, cache


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [None, (0, 2), (3, 150), (200, 263)], ids=str)
def test_kernels_read_several_queries_of_sequences_of_unequal_lengths(hidden):
    """Padding hides sinks, part of a page, whole pages; every query sees the tokens before it."""
    model, profile = setting()
    mask = None
    if hidden is not None:
        mask = torch.ones(2, 402, dtype=torch.int64, device=DEVICE)
        for row, count in enumerate(hidden):
            mask[row, :count] = 0
    mine, cache = masked(model, profile, "triton", mask)
    theirs, _ = masked(model, profile, "torch", mask)
    assert float((mine - theirs).norm() / theirs.norm()) < 5e-3
    assert cache.stats().spent.kernel_reads == len(cache.layers)


@pytest.mark.slow
def test_a_selection_is_made_for_every_query():
    model, profile = setting()
    together, cache = masked(model, profile, "triton", None, select=0.3)
    ids = torch.randint(5, 500, (2, 402), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    apart = SpectralCache(model, profile, tier="hot", kernels="triton", select=0.3)
    with torch.no_grad():
        model(input_ids=ids[:, :400], past_key_values=apart)
        single = [model(input_ids=ids[:, i : i + 1], past_key_values=apart).logits for i in range(400, 402)]
    single = torch.cat(single, dim=1)
    assert float((together - single).norm() / single.norm()) < 5e-3
    assert cache.stats().spent.kernel_reads == len(cache.layers)


def test_a_read_that_no_kernel_takes_is_an_error_where_kernels_were_asked_for():
    model, profile = setting()
    ids = torch.randint(5, 500, (2, 401), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, 100:110] = 0
    cache = SpectralCache(model, profile, tier="hot", kernels="triton")
    with torch.no_grad():
        model(input_ids=ids[:, :400], past_key_values=cache)
        with pytest.raises(InputError, match="hides tokens between others"):
            model(input_ids=ids[:, 400:], past_key_values=cache, attention_mask=mask)


@pytest.mark.slow
def test_prompt_lookup_goes_through_kernels():
    model, profile = setting()
    ids = torch.randint(5, 60, (1, 300), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "prompt_lookup_num_tokens": 3}
    cache = SpectralCache(model, profile, tier="hot", kernels="triton")
    with torch.no_grad():
        looked_up = model.generate(ids, past_key_values=cache, **options)
        options.pop("prompt_lookup_num_tokens")
        plain = model.generate(
            ids, past_key_values=SpectralCache(model, profile, tier="hot", kernels="triton"), **options
        )
    assert torch.equal(looked_up, plain)
    assert cache.stats().spent.kernel_reads >= 2 * len(cache.layers)


def test_choices_are_checked(monkeypatch):
    model, profile = setting()
    with pytest.raises(InputError, match="not one of auto, triton, torch"):
        SpectralCache(model, profile, kernels="cuda")
    if DEVICE == "cpu":
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(InputError, match="read CUDA memory"):
            SpectralCache(model, profile, tier="hot", kernels="triton")


def test_a_table_of_pages_is_not_taken_for_blocks_that_came_later():
    """CPython gives a new block the address of one that is gone: an address alone does not tell blocks apart."""
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="hot", kernels="triton")
    with torch.no_grad():
        loaded.model(input_ids=torch.randint(5, 500, (1, 400)), past_key_values=cache, logits_to_keep=1)
    tier, (first, second) = cache.tiers["hot"], cache.state.sequences[0]
    data = tier.to_bytes(first), tier.to_bytes(second)
    cache.reset()
    address, kept = None, []
    del first, second
    for _ in range(200):
        old = tier.from_bytes(data[0], 128, 128)
        expected = tier.row_pages(0, [[old]])
        address, page = id(old), old.payload
        del old
        kept.append(page)
        for _ in range(10):  # blocks that stay take the free addresses that come before it
            new = tier.from_bytes(data[1], 128, 128)
            if id(new) == address:
                break
            kept.append(new)
        if id(new) == address:
            break
    assert id(new) == address, "the addresses of this interpreter's objects are never used again"
    found = tier.row_pages(0, [[new]])
    here = found.storage.data_ptr() + int(found.pages[0, 0])
    assert here == new.payload.data.data_ptr()
    assert here != expected.storage.data_ptr() + int(expected.pages[0, 0])
