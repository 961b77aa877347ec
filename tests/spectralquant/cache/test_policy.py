"""Tiers by name, by age and by budget; the working set; packets and lazily loaded blocks."""

import pytest
import torch
from conftest import profile_of

import spectralquant
from spectralquant import SpectralCache
from spectralquant.cache.persist.lazy import LazySection
from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.codec.packet import CODED
from spectralquant.errors import InputError, PacketError, ProfileError


def ids(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 500, (1, tokens), generator=torch.Generator().manual_seed(seed))


def filled(tokens: int = 1200, **options) -> SpectralCache:
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, background=False, **options)
    with torch.no_grad():
        for part in ids(tokens).split(100, dim=1):
            loaded.model(input_ids=part, past_key_values=cache)
    return cache


def test_auto_takes_the_fastest_tier():
    assert filled(400).policy.first == "hot"


def test_blocks_move_down_with_age():
    cache = filled(tier="hot", ages={"warm": 400, "cold": 800})
    total = cache.get_seq_length()
    for block in cache.state.sequences[0]:
        age = total - block.stop
        assert block.tier == ("cold" if age >= 800 else "warm" if age >= 400 else "hot")
    assert cache.stats().spent.demotions > 0


def test_a_memory_budget_is_kept():
    free = filled(tier="hot").stats()
    limit = free.exact_bytes * 3 // 2 + free.tiers["hot"].bytes // 4  # the window grows by 127 tokens within its cycle
    cache = filled(tier="hot", max_bytes=limit)
    stats = cache.stats()
    assert stats.exact_bytes + sum(t.bytes for t in stats.tiers.values()) <= limit
    assert len(stats.tiers) > 1 and not stats.over_budget
    assert cache.state.sequences[0][0].tier != "hot", "the oldest go first"
    with pytest.warns(UserWarning, match="over max_bytes"):
        assert filled(tier="hot", max_bytes=1000).stats().over_budget


def test_demotion_moves_the_oldest_block_one_tier_down():
    cache = filled(600, tier="hot")
    assert cache.demote(1) == 1
    assert [block.tier for block in cache.state.sequences[0]] == ["warm", "hot", "hot"]


OLD_NAMES = {
    "demote": lambda model, profile: filled(600, tier="hot").evict(),
    "SpectralCache": lambda *_: spectralquant.SpectralKVCache,
    "adaptive_tables": lambda model, profile: pack_prompt(model, profile, ids(300), adaptive=True),
}


@pytest.mark.parametrize("new", OLD_NAMES)
def test_older_names_still_work_and_name_the_new_one_where_they_are_used(new):
    loaded, profile = profile_of("llama")
    with pytest.warns(DeprecationWarning, match=f"is now called {new}") as caught:
        OLD_NAMES[new](loaded.model, profile)
    assert caught[0].filename == __file__


def test_older_names_mean_the_same():
    loaded, profile = profile_of("llama")
    assert spectralquant.SpectralKVCache is SpectralCache and filled(600, tier="hot").evict() == 1
    packets = [
        pack_prompt(loaded.model, profile, ids(300), **{name: True})[0] for name in ("adaptive", "adaptive_tables")
    ]
    assert bytes(packets[0]) == bytes(packets[1])


@pytest.mark.parametrize("name", ["adaptive", "adaptive_ranks"])
def test_files_from_before_bounds_are_read_unless_ranks_followed_their_text(tmp_path, name):
    loaded, profile = profile_of("llama")
    snapshot = filled(600, tier="cold")._snapshot()
    del snapshot.facts["options"]["bound"]
    for ranks_followed in (False, True):
        snapshot.facts["options"][name] = ranks_followed
        snapshot.save(tmp_path / "c")
        if not ranks_followed:
            assert SpectralCache.load(tmp_path / "c", loaded.model, profile).options["bound"] is None
    with pytest.raises(InputError, match="bound="):
        SpectralCache.load(tmp_path / "c", loaded.model, profile)


@pytest.mark.parametrize("tier", ["warm", "cold"])
def test_a_working_set_changes_nothing_but_time_and_memory(tier):
    loaded, _ = profile_of("llama")
    plain, kept = filled(tier=tier), filled(tier=tier, working_set=200_000)
    assert 0 < kept.stats().working_set_bytes <= 200_000
    assert kept.stats().resident_bytes > plain.stats().resident_bytes
    with torch.no_grad():
        a, b = (loaded.model(input_ids=ids(1, 3), past_key_values=c).logits for c in (plain, kept))
    assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))


def test_a_packed_cache_equals_a_packed_prompt_and_goes_on(tmp_path):
    """Packets of a cache and of `pack_prompt` hold the same tokens the same way; blocks are read from the map lazily."""
    loaded, profile = profile_of("llama")
    prompt = ids(700)
    cache = SpectralCache(loaded.model, profile, tier="cold", background=False)
    with torch.no_grad():
        loaded.model(input_ids=prompt, past_key_values=cache)
    mine, theirs = cache.pack()[0], pack_prompt(loaded.model, profile, prompt)[0]
    assert [(s.start, s.tokens, s.kind) for s in mine.sections] == [
        (s.start, s.tokens, s.kind) for s in theirs.sections
    ]
    assert mine.coded_bytes == pytest.approx(theirs.coded_bytes, rel=0.02)
    mine.save(tmp_path / "prompt.sqkv")
    again = SpectralCache.unpack(loaded.model, profile, tmp_path / "prompt.sqkv", background=False)
    assert all(isinstance(b.payload, LazySection) for b in again.state.sequences[0])
    with torch.no_grad():
        a, b = (loaded.model(input_ids=ids(1, 3), past_key_values=c).logits for c in (cache, again))
        assert torch.allclose(a, b, atol=1e-3 * float(a.abs().max()))
        for c in (cache, again):
            loaded.model(input_ids=ids(300, 4), past_key_values=c)
    held = again.stats().tiers
    assert held["cold"].tokens == cache.stats().tiers["cold"].tokens == 764
    damaged = bytearray(mine.data)
    section = next(s for s in mine.sections if s.kind == CODED)
    damaged[section.offset + 40] ^= 1
    (tmp_path / "damaged.sqkv").write_bytes(damaged)
    broken = SpectralCache.unpack(loaded.model, profile, tmp_path / "damaged.sqkv")
    with torch.no_grad(), pytest.raises(PacketError, match="checksum"):
        loaded.model(input_ids=ids(1, 3), past_key_values=broken)


def test_hot_and_warm_blocks_are_packed_as_cold_ones():
    loaded, profile = profile_of("llama")
    packet = filled(tier="hot", ages={"warm": 500}).pack()[0]
    again = SpectralCache.unpack(loaded.model, profile, packet)
    assert again.get_seq_length() == 1200
    assert set(again.stats().tiers) == {"cold"}


def test_one_tensor_alone():
    loaded, profile = profile_of("llama")
    cache = filled(600, tier="cold")
    keys = torch.stack([cache.view(layer).dense()[0][0] for layer in range(3)])
    packet = SpectralCache(loaded.model, profile).compress(keys, token_ids=ids(600)[0])
    back = SpectralCache.unpack(loaded.model, profile, packet)
    for layer in range(3):
        found = back.view(layer).dense()[0][0]
        assert (found - keys[layer]).norm() < 0.5 * keys[layer].norm()
    with pytest.raises(InputError, match=r"\[L, Hk, T, D\]"):
        cache.compress(keys[0])
    with pytest.raises(InputError, match="token_ids"):
        cache.compress(keys)


def test_padded_sequences_are_not_packed():
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="hot")
    mask = torch.ones(1, 300, dtype=torch.int64)
    mask[0, :20] = 0
    loaded.model.generate(
        input_ids=ids(300), attention_mask=mask, past_key_values=cache, max_new_tokens=2, pad_token_id=0
    )
    with pytest.raises(InputError, match="padding"):
        cache.pack()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "lukewarm"}, "not one of"),
        ({"window": 100}, "multiple"),
        ({"lag": 200}, "lag"),
        ({"attention": "flash"}, "spectral, model"),
        ({"max_bytes": 0}, "positive"),
        ({"ages": {"icy": 3}}, "not one of"),
    ],
)
def test_wrong_options(options, message):
    loaded, profile = profile_of("llama")
    with pytest.raises(InputError, match=message):
        SpectralCache(loaded.model, profile, **options)


def test_the_wrong_model_or_batch_is_refused(tmp_path):
    loaded, profile = profile_of("llama")
    other, _ = profile_of("qwen3")
    with pytest.raises(ProfileError):
        SpectralCache(other.model, profile)
    with pytest.raises(InputError, match="no hot tier"):
        SpectralCache(loaded.model, None, tier="hot")
    cache = filled(200)
    with torch.no_grad(), pytest.raises(InputError, match="holds 1 sequences"):
        loaded.model(input_ids=ids(4).expand(2, -1), past_key_values=cache)
    (tmp_path / "x").write_text("nothing")
    with pytest.raises(InputError):
        SpectralCache.load(tmp_path / "x", loaded.model, profile)


def test_a_working_set_of_warm_codes_holds_more_and_reads_as_the_warm_tier_does():
    loaded, _ = profile_of("llama")
    plain, dense, coded, warm, exact = (
        filled(**options)
        for options in (
            {"tier": "cold"},
            {"tier": "cold", "working_set": 200_000},
            {"tier": "cold", "working_set": 200_000, "working_tier": "warm"},
            {"tier": "warm"},
            {"tier": "exact"},
        )
    )
    assert 0 < coded.stats().working_set_bytes <= 200_000
    kept = [sum(len(group.reader.working.kept) for group in c.groups) for c in (dense, coded)]
    assert kept[1] > kept[0]
    with torch.no_grad():
        logits = [loaded.model(input_ids=ids(1, 3), past_key_values=c).logits for c in (plain, coded, warm, exact)]
    assert 0 < (logits[1] - logits[0]).norm() < 1.5 * (logits[2] - logits[3]).norm()
    with pytest.raises(InputError, match="working_tier"):
        filled(tier="cold", working_tier="lukewarm")


def test_a_working_set_of_warm_codes_survives_a_file(tmp_path):
    loaded, profile = profile_of("llama")
    cache = filled(tier="cold", working_set=200_000, working_tier="warm")
    cache.save(tmp_path / "c")
    again = SpectralCache.load(tmp_path / "c", loaded.model, profile)
    assert again.options["working_tier"] == "warm"
