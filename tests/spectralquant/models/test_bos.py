"""Windows and prompts begin with the beginning-of-text token where the model needs it."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing

from spectralquant.errors import SourceError
from spectralquant.evaluation.tasks.needle import needle_trial
from spectralquant.models.load import load_model
from spectralquant.text.bos import begin_with_bos, bos_token
from spectralquant.text.mix import tokenize_sources
from spectralquant.text.read import open_sources
from spectralquant.text.tokens import prompt_ids, tokenize
from tests.conftest import random_model, small_tokenizer


@pytest.fixture
def plain():
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return tokenizer


@pytest.fixture
def beginning(plain):
    special = [("<s>", plain.bos_token_id)]
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    return plain


def test_every_window_begins_with_it(beginning):
    bos = beginning.bos_token_id
    text = tokenize(beginning, ["some words and more words " * 200])
    assert text.bos == bos and bos not in text.ids
    windows = text.windows(64)
    assert (windows[:, 0] == bos).all() and (windows[:, 1:] != bos).all()
    mixed = tokenize_sources(beginning, open_sources(["builtin:pydoc=2", "builtin:stdlib"]), 3000, window=64).windows(
        64
    )
    assert (mixed[:, 0] == bos).all() and (mixed[:, 1:] != bos).all()
    assert needle_trial(beginning, 300, 0.5, "12345").ids[0] == bos


def test_prompts_have_it_once(beginning):
    bos = beginning.bos_token_id
    assert prompt_ids(beginning, "Hi") == prompt_ids(beginning, "<s>Hi")
    assert prompt_ids(beginning, "Hi").count(bos) == 1


def test_tokenizers_that_leave_it_out_are_made_to_add_it(plain):
    assert bos_token(plain) is None
    begin_with_bos(plain, plain.bos_token_id, "here")
    assert bos_token(plain) == plain.bos_token_id
    begin_with_bos(plain, plain.bos_token_id, "here")
    assert prompt_ids(plain, "Hi").count(plain.bos_token_id) == 1


def test_what_cannot_be_made_to_is_refused():
    with pytest.raises(SourceError, match="needs a beginning-of-text token"):
        begin_with_bos(copy.deepcopy(small_tokenizer()), None, "here")


def test_a_gemma_folder_whose_tokenizer_leaves_it_out(plain, tmp_path):
    random_model("gemma3_text", vocab_size=len(plain)).save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    assert bos_token(load_model(str(tmp_path), device="cpu").tokenizer) == plain.bos_token_id
