"""Models with random weights answer with tokens that their tokenizer of bytes cannot spell."""

from __future__ import annotations

import pytest
from commands_for_tests import sq
from transformers import ByT5Tokenizer

from sqcli.loading.random_text import UNKNOWN, TolerantBytes


@pytest.mark.parametrize("text", ["", "plain", "Grüße, 北京", "two\nlines</s>"])
def test_what_the_tokenizer_spells_is_as_it_was(text):
    ids = ByT5Tokenizer()(text)["input_ids"]
    assert TolerantBytes().decode(ids) == ByT5Tokenizer().decode(ids)


def test_tokens_beyond_bytes_are_replacement_characters():
    [letter] = ByT5Tokenizer()("A", add_special_tokens=False)["input_ids"]
    assert TolerantBytes().decode([384, letter, 31_999, 128_255]) == f"{UNKNOWN}A{UNKNOWN * 2}"


def test_a_random_shape_generates(capsys):
    shape = "random:custom:layers=2,heads=4,kv_heads=2,head_dim=16,vocab=32000"
    assert sq("generate", "Hello", "--model", shape, "--new-tokens", 8, "--offline", "--device", "cpu") == 0
    assert UNKNOWN in capsys.readouterr().out
