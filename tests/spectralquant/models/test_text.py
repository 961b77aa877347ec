"""Text sources and windows of tokens."""

from __future__ import annotations

import json

import pytest
import torch

from spectralquant.errors import InputError, SourceError
from spectralquant.text.read import load_text
from spectralquant.text.tokens import TokenText, tokenize, tokens_sha256

ROWS = ["first document", "", "second document"]


def test_built_in_texts_are_there_and_repeatable():
    assert sum(map(len, load_text("builtin:pydoc"))) > 400_000
    first = next(iter(load_text("builtin:stdlib")))
    assert first == next(iter(load_text("builtin:stdlib"))) and len(first) > 100


@pytest.mark.parametrize("column", ["text", "content"])
def test_jsonl_and_parquet_columns(tmp_path, column):
    import pyarrow
    import pyarrow.parquet

    lines = tmp_path / "t.jsonl"
    lines.write_text("\n".join(json.dumps({"id": i, column: r}) for i, r in enumerate(ROWS)))
    pyarrow.parquet.write_table(pyarrow.table({"id": [0, 1, 2], column: ROWS}), tmp_path / "t.parquet")
    for path in (lines, tmp_path / "t.parquet"):
        assert list(load_text(f"file:{path}")) == [ROWS[0], ROWS[2]]


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{not json")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "columns.jsonl").write_text('{"a": 1}\n')
    for name, message in (
        ("bad.jsonl", "row 1 cannot be read as JSON"),
        ("latin.txt", "not UTF-8"),
        ("columns.jsonl", "no text column"),
        ("none.txt", "no file"),
    ):
        with pytest.raises(SourceError, match=message):
            list(load_text(f"file:{tmp_path / name}"))
    with pytest.raises(InputError, match="Did you mean 'builtin:pydoc'"):
        load_text("builtin:pydocs")


def test_hub_text_offline_is_refused_at_once():
    with pytest.raises(SourceError, match="needs the network"):
        load_text("hub:wikitext", offline=True)


def test_windows_are_contiguous_and_start_with_bos_where_there_is_one():
    ids = torch.arange(100)
    plain = TokenText(ids).windows(30)
    assert plain.shape == (3, 30) and plain[1, 0] == 30
    with_bos = TokenText(ids, bos=7).windows(30)
    assert with_bos[:, 0].tolist() == [7, 7, 7] and with_bos[1, 1] == 29
    assert TokenText(ids).windows(20, 2, start=50)[0, 0] == 50
    with pytest.raises(SourceError, match="100 tokens; 4 windows of 30"):
        TokenText(ids).windows(30, 4)
    with pytest.raises(InputError, match="too short"):
        TokenText(ids).windows(4)


def test_streams_are_read_only_as_far_as_needed(tokenizer):
    def endless():
        while True:
            yield "some words and more words"

    assert len(tokenize(tokenizer, endless(), 500).ids) < 600
    with pytest.raises(SourceError, match="text is empty"):
        tokenize(tokenizer, ["", "  "])


def test_hash_depends_on_ids_only():
    assert tokens_sha256(torch.tensor([1, 2])) == tokens_sha256(torch.tensor([[1, 2]], dtype=torch.int32))
    assert tokens_sha256(torch.tensor([1, 2])) != tokens_sha256(torch.tensor([2, 1]))
