"""Tokens of documents: chat templates, and texts larger than memory in pieces."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
import torch

from spectralquant.errors import SourceError
from spectralquant.text.bos import begin_with_bos
from spectralquant.text.documents.conversation import Conversation
from spectralquant.text.documents.pieces import Continuation, in_pieces
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize
from tests.conftest import small_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TEMPLATE
CHAT = Conversation([{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Yes"}])


@pytest.fixture
def chatty():
    import copy

    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    return tokenizer


def test_conversations_are_rendered_by_the_chat_template(chatty):
    ids = tokenize(chatty, [CHAT, CHAT]).ids
    assert chatty.decode(ids) == "<s><user>Hi there</user><assistant>Yes</assistant>" * 2
    begin_with_bos(chatty, chatty.bos_token_id, "here")  # now windows begin with it, and conversations do not
    assert chatty.decode(tokenize(chatty, [CHAT]).ids) == "<user>Hi there</user><assistant>Yes</assistant>"
    chatty.chat_template = None
    assert chatty.decode(tokenize(chatty, [CHAT, CHAT]).ids) == "\n\n".join(["user: Hi there\nassistant: Yes"] * 2)


def test_turns_that_a_template_refuses_are_said(chatty):
    chatty.chat_template = STRICT
    odd = Conversation([{"role": "system", "content": "Be brief"}])
    with pytest.warns(UserWarning, match=r"refused 2 conversations \(no system turns\)"):
        ids = tokenize(chatty, [odd, CHAT, odd]).ids
    assert "system: Be brief" in chatty.decode(ids) and "<user>Hi there</user>" in chatty.decode(ids)


def test_message_lists_and_rows_may_be_given_as_they_are(chatty):
    rows = [CHAT.messages, {"messages": CHAT.messages}, {"text": "plain"}]
    text = chatty.decode(tokenize(chatty, rows).ids)
    assert text == "<s><user>Hi there</user><assistant>Yes</assistant>" * 2 + "\n\nplain"
    with pytest.raises(SourceError, match="row 2: it is a number"):
        tokenize(chatty, ["a", 5])


def test_pieces_make_the_whole_and_end_at_lines():
    text = "".join(f"line {i}\n{'' if i % 7 else chr(10)}" for i in range(2000))
    pieces = list(in_pieces([text[:100], text[100:9000], text[9000:]], 1000))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1000
    assert [isinstance(p, Continuation) for p in pieces] == [False] + [True] * (len(pieces) - 1)
    assert all(a.endswith("\n") and not b[0].isspace() for a, b in itertools.pairwise(pieces))
    assert [len(p) for p in in_pieces(["x" * 2500], 1000)] == [1000, 1000, 500]


def test_pieces_give_the_tokens_of_the_whole(tokenizer, tmp_path):
    text = "".join(load_text("builtin:pydoc"))[:700_000]
    (tmp_path / "t.txt").write_text(text)
    whole = tokenizer(text, add_special_tokens=False).input_ids
    assert len(list(load_text(f"file:{tmp_path / 't.txt'}"))) > 1
    assert torch.equal(tokenize(tokenizer, load_text(f"file:{tmp_path / 't.txt'}")).ids, torch.tensor(whole))
    assert torch.equal(tokenize(tokenizer, [text]).ids, torch.tensor(whole))


@pytest.mark.parametrize("form", ["lines.txt", "one_line.txt", "rows.jsonl", "array.json"])
def test_large_files_are_read_as_far_as_needed(tokenizer, tmp_path, form):
    path = tmp_path / form
    with open(path, "w") as out:
        out.write("[" if form == "array.json" else "")
        for i in range(100_000):
            line = (
                f"{i} the pump stopped at night and nobody heard it at all, which is why the cellar was full of water"
            )
            row = f'{{"text": "{line}"}}' + (",\n" if form == "array.json" else "\n")
            out.write(row if "j" in form else line + ("\n" if form == "lines.txt" else " "))
        out.write('{"text": "end"}]' if form == "array.json" else "")
    assert path.stat().st_size > 9e6
    tracemalloc.start()
    try:
        ids = tokenize(tokenizer, load_text(f"file:{path}"), 5000).ids
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 5000 <= len(ids) < 150_000
    assert peak < 40e6


def test_a_book_in_a_row_is_tokenized_in_pieces(tokenizer):
    assert len(tokenize(tokenizer, ["word and word " * 1_000_000], 1000).ids) < 150_000
