"""Rows to text: nothing is printed as Python prints it, and what is left out is told."""

from __future__ import annotations

import json

import pytest

from spectralquant.errors import SourceError
from spectralquant.text.documents.columns import RowReader

ASK = {"role": "user", "content": "How?\nNow"}
SAY = {"role": "assistant", "content": "So."}
TURNS = "user: How?\nNow\nassistant: So."
PARTS = [{"type": "text", "text": "How?\nNow"}]

ROWS = {
    "text": ({"id": 1, "text": "a"}, "a"),
    "messages": ({"messages": [ASK, SAY]}, TURNS),
    "messages_as_json": ({"messages": json.dumps([ASK, SAY])}, TURNS),
    "parts_in_messages": ({"messages": [{"role": "user", "content": PARTS}, SAY]}, TURNS),
    "sharegpt": ({"conversations": [{"from": "human", "value": "How?\nNow"}, {"from": "gpt", "value": "So."}]}, TURNS),
    "gemini": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": "How?\nNow"}]},
                {"role": "model", "parts": [{"text": "So."}]},
            ]
        },
        TURNS,
    ),
    "system_beside": ({"system": "Be brief.", "messages": [ASK]}, "system: Be brief.\nuser: How?\nNow"),
    "parts": ({"content": PARTS}, "How?\nNow"),
    "one_message_a_row": ({"role": "user", "content": "How?"}, "How?"),
    "prompt_completion": ({"prompt": "Why?", "completion": " Because."}, "Why? Because."),
    "prompt_completion_apart": ({"prompt": "Why?", "completion": "Because."}, "Why?\nBecause."),
    "prompt_turns": ({"prompt": [ASK], "completion": [SAY]}, TURNS),
    "prompt_turns_and_text": ({"prompt": [ASK], "chosen": "So."}, TURNS),
    "chosen_repeats_the_prompt": ({"prompt": "How?\nNow", "chosen": [ASK, SAY], "rejected": [ASK]}, TURNS),
    "chosen": ({"chosen": "Yes.", "rejected": "No."}, "Yes."),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n1 2\n3"),
    "alpaca_without_input": ({"instruction": "Add.", "input": "", "output": "3"}, "Add.\n3"),
    "dolly": ({"instruction": "Who?", "context": "Ann.", "response": "Ann"}, "Who?\nAnn.\nAnn"),
    "question_answer": ({"question": "Who?", "answer": "Ann"}, "Who?\nAnn"),
    "batch_request": ({"custom_id": "1", "body": {"model": "m", "messages": [ASK]}}, "user: How?\nNow"),
    "batch_completion": ({"custom_id": "1", "body": {"model": "m", "prompt": "Once"}}, "Once"),
    "batch_response_api": (
        {"body": {"input": [ASK], "instructions": "Be brief."}},
        "system: Be brief.\nuser: How?\nNow",
    ),
    "batch_output": ({"response": {"status_code": 200, "body": {"choices": [{"message": SAY}]}}}, "assistant: So."),
    "body_of_text": ({"body": "plain"}, "plain"),
    "list_of_texts": ({"text": ["a", "b"]}, "a\nb"),
    "bytes": ({"text": "Straße".encode()}, "Straße"),
    "tool_call": (
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]},
        'user: How?\nNow\nassistant: [{"name": "f"}]',
    ),
    "tool_result": (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "42"}]}]},
        "user: 42",
    ),
    "conversation_itself": ([ASK, SAY], TURNS),
    "text_itself": ("a", "a"),
    "null_and_another": ({"text": None, "content": "a"}, "a"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_language_data(name):
    row, text = ROWS[name]
    assert RowReader("here", None, "…").text(row, 1) == text


FAULTS = {
    "number": ({"text": 5}, r"column text holds a number \(5\)"),
    "zero": ({"text": 0}, r"column text holds a number \(0\)"),
    "nan": ({"text": float("nan")}, "column text holds a number"),
    "truth": ({"text": False}, "column text holds a truth value"),
    "object": ({"text": {"a": 1, "b": 2}}, r"column text is an object \(a, b\).*text.KEY"),
    "token_ids": ({"text": [1, 2]}, "a list that begins with a number"),
    "python_print": ({"messages": str([ASK])}, "Python's print of a list"),
    "latin_bytes": ({"text": b"caf\xe9"}, "bytes that are not UTF-8"),
    "no_role": ({"messages": [{"content": "a"}]}, "begins with an object"),
    "no_content": ({"messages": [{"role": "user"}]}, r"message 1 \(of user\) has no content"),
    "number_in_content": ({"messages": [ASK, {"role": "user", "content": 5}]}, "content is int"),
    "several_conversations": ({"messages": [[ASK], [ASK]]}, "begins with a list"),
    "number_in_pair": ({"prompt": "a", "completion": 3}, "column completion holds a number"),
    "empty_body": ({"body": {"model": "m"}}, "its object has no text among model"),
    "unknown": ({"a": 1, "b": 2}, "no text column .* it has a, b"),
    "number_itself": (5, "it is a number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_text_is_refused_with_its_row(name):
    row, message = FAULTS[name]
    with pytest.raises(SourceError, match=f"here, row 4,711 .line 9.: .*{message}"):
        RowReader("here", None, "…").text(row, 4711, " (line 9)")


NESTED = {"body": {"messages": [ASK, SAY], "n": 3}, "a.b": "dotted", "text": "other"}


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("body.messages", TURNS),
        ("body.messages.0.content", "How?\nNow"),
        ("body.messages.-1.content", "So."),
        ("body.messages.content", "How?\nNow\nSo."),
        ("body", TURNS),
        ("a.b", "dotted"),
    ],
)
def test_named_columns_also_nested(column, text):
    assert RowReader("here", column, "…").text(NESTED, 1) == text


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("body.mesages", "there is no column mesages; there is messages, n. Did you mean 'messages'?"),
        ("body.n", "holds a number"),
        ("title", "there is no column title; there is body, a.b, text"),
        ("text.more", "there is no column more in a text"),
    ],
)
def test_columns_that_are_not_there(column, message):
    with pytest.raises(SourceError, match=message):
        RowReader("here", column, "…").text(NESTED, 1)


def test_what_is_left_out_is_told_once():
    said: list[str] = []
    picture = {"role": "user", "content": [*PARTS, {"type": "image_url", "image_url": {"url": "x"}}]}
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "two words", "id": "3"},
        {"prompt": "a", "chosen": "b", "rejected": "two words"},
        {"messages": [picture]},
        {"messages": []},
        {"text": None},
        {"text": "half \ud83d a pair"},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ]
    found = list(RowReader("here", None, "…").documents(((i, "", row) for i, row in enumerate(rows, 1)), said.append))
    assert found == ["a\nb", "a\nb", "user: How?\nNow", "half \ufffd a pair"]
    assert said == [
        "here: text is taken from prompt + chosen; not read: rejected.",
        "here: left out parts of type image_url (2), rows without text (3), broken characters (half a surrogate pair) (1).",
    ]
