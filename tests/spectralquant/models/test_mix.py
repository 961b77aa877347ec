"""Several texts, each with a weight."""

from __future__ import annotations

import itertools

import pytest
import torch

from spectralquant.errors import InputError, SourceError
from spectralquant.text.mix import tokenize_sources
from spectralquant.text.read import TextSource, open_sources, parse_weight, text_name
from spectralquant.text.tokens import tokens_sha256

WINDOW = 16


def source(name: str, weight: float, word: str = "", count: int | None = None) -> TextSource:
    """A text of one word, so that every token tells where it is from."""
    words = itertools.repeat(f" {word or name}" * 50) if count is None else [f" {word or name}" * count]
    return TextSource(name, weight, iter(words))


def text_of(tokenizer, *sources, need=1600, **options):
    return tokenize_sources(tokenizer, sources, need, window=WINDOW, **options)


@pytest.mark.parametrize("weights", [(3, 1), (1, 1), (0.2, 5), (1, 2, 3)])
def test_every_beginning_holds_the_shares(tokenizer, weights):
    text = text_of(tokenizer, *(source(f"text{w}{i}", w) for i, w in enumerate(weights)))
    windows = text.windows(WINDOW)
    assert len(windows) >= 100
    for n in (len(windows), 60, 24):
        shares = text.shares(n * WINDOW)
        assert sum(s.tokens for s in shares) == n * WINDOW
        for share, weight in zip(shares, weights, strict=True):
            assert abs(share.tokens - n * WINDOW * weight / sum(weights)) <= WINDOW
            assert share.weight == weight


def test_windows_are_of_one_text_each_and_hashes_are_of_its_tokens(tokenizer):
    text = text_of(tokenizer, source("aaa", 3), source("zzz", 1))
    texts = [tokenizer.decode(w) for w in text.windows(WINDOW)[:8]]
    assert [("a" in t, "z" in t) for t in texts].count((True, False)) == 6
    assert all(("a" in t) != ("z" in t) for t in texts)
    alone = text_of(tokenizer, source("zzz", 1))
    share = text.shares()[1]
    assert share.sha256 == tokens_sha256(alone.ids[: share.tokens])


def test_mixes_are_the_same_however_far_they_are_read(tokenizer):
    short = text_of(tokenizer, source("aaa", 3), source("zzz", 1), need=500)
    long = text_of(tokenizer, source("aaa", 3), source("zzz", 1), need=5000)
    assert torch.equal(long.ids[: len(short.ids)], short.ids)


def test_a_text_that_is_too_short_for_its_share_is_named(tokenizer):
    with pytest.raises(SourceError, match=r"zzz gives \d+ tokens; its share \(25% by weight\) of 1,600 is 400"):
        text_of(tokenizer, source("aaa", 3), source("zzz", 1, count=20))
    text = text_of(tokenizer, source("aaa", 3), source("zzz", 1, count=300), need=400, read=100_000)
    assert len(text.ids) >= 400 and text.shares()[1].tokens == 4 * 300


def test_text_seen_before_is_found_in_other_company(tokenizer):
    before = text_of(tokenizer, source("aaa", 1), source("zzz", 1), need=640).shares(640)
    now = text_of(tokenizer, source("other", 2), source("zzz", 1, "zzz"), need=3200)
    last = now.seen(before)
    mine = [i for i, w in enumerate(now.windows(WINDOW)) if "z" in tokenizer.decode(w)]
    assert last == (mine[320 // WINDOW - 1] + 1) * WINDOW
    assert text_of(tokenizer, source("other", 1)).seen(before) == 0
    alone = text_of(tokenizer, source("zzz", 1), need=3200)
    assert alone.seen(alone.shares(320)) == 320


def test_reading_that_ends_early_is_told(tokenizer):
    said: list[str] = []
    text_of(tokenizer, source("aaa", 1), need=100, read=2000, report=said.append)
    text_of(tokenizer, source("aaa", 1), source("zzz", 2), need=100, read=2000, report=said.append)
    assert len(said) == 2 and "is read up to 2," in said[0]
    text_of(tokenizer, source("aaa", 1, count=200), need=100, read=2000, report=said.append)
    assert len(said) == 2


def test_weights_are_parsed(tmp_path):
    assert parse_weight("file:a.jsonl=3") == ("file:a.jsonl", 3.0)
    assert parse_weight("hub:name:config=0.5") == ("hub:name:config", 0.5)
    assert parse_weight("builtin:pydoc") == ("builtin:pydoc", 1.0)
    assert parse_weight("file:a=b.txt") == ("file:a=b.txt", 1.0)
    (tmp_path / "run=3").write_text("text")
    assert parse_weight(f"file:{tmp_path}/run=3") == (f"file:{tmp_path}/run=3", 1.0)
    assert parse_weight(f"file:{tmp_path}/run=3=2") == (f"file:{tmp_path}/run=3", 2.0)
    for bad in ("0", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="positive number"):
            parse_weight(f"file:a.jsonl={bad}")


def test_sources_are_opened_and_named():
    sources = open_sources(["builtin:pydoc=2", "builtin:stdlib"])
    assert text_name(sources) == "builtin:pydoc=2 + builtin:stdlib=1"
    assert text_name(sources[:1]) == "builtin:pydoc"
    with pytest.raises(InputError, match="given twice"):
        open_sources(["builtin:pydoc", "builtin:pydoc=2"])
    with pytest.raises(InputError, match="missing"):
        open_sources([])
