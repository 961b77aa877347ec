"""Message lists: what a chat log holds, and how a tokenizer's chat template renders it.

Read are the forms in use: `role`/`content` (OpenAI, Anthropic, transformers), `from`/`value` (ShareGPT), `role`/`parts`
(Gemini), content as a string or as a list of parts, with tool calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
SPEAKERS = ("role", "from", "speaker")
SAID = ("content", "value", "parts", "text")
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
TEXT_KEYS = ("text", "thinking", "reasoning", "refusal", "output")
DATE = "26 Jul 2024"


class NotTextError(Exception):
    """A value that is no text, with the reason; readers add the file and the row."""


class Conversation(str):
    """A conversation as a document: its text joins role and content; `render` uses a chat template."""

    messages: list[Message]
    tools: list[Any] | None

    def __new__(cls, messages: list[Message], tools: list[Any] | None = None) -> Conversation:
        self = super().__new__(cls, "\n".join(f"{m['role']}: {_plain(m)}" for m in messages))
        self.messages, self.tools = messages, tools
        return self

    def render(self, tokenizer: Any, *, without: str) -> str:
        """The turns as the tokenizer's chat template writes them, `without` (a beginning-of-text token) at their start.

        Raises:
            whatever the template raises on turns that it does not allow.
        """
        # Templates that print today's date would make another text every day; this is the date they fall back to.
        text = tokenizer.apply_chat_template(self.messages, tools=self.tools, tokenize=False, date_string=DATE)
        return text.removeprefix(without)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and _key(m, SPEAKERS) for m in value)


def messages_of(value: list[Message], left_out: Callable[[str], None]) -> list[Message]:
    """Messages in the form of transformers (`role`, `content` a string, `tool_calls` where there are any).

    `left_out` is told of parts that are not text.

    Raises:
        NotTextError: a message without a role or content.
    """
    out = []
    for number, message in enumerate(value, 1):
        role = message[_key(message, SPEAKERS)]
        if not isinstance(role, str):
            raise NotTextError(f"message {number} has the role {role!r}")
        said = _key(message, SAID)
        content = None if said is None else content_text(message[said], left_out)
        kept = {k: v for k, v in message.items() if k not in (*SPEAKERS, *SAID) and v is not None}
        if said is None and not kept.get("tool_calls") and not kept.get("function_call"):
            raise NotTextError(f"message {number} (of {role}) has no content")
        out.append({"role": ROLES.get(role, role), "content": content or "", **kept})
    return out


def content_text(content: Any, left_out: Callable[[str], None]) -> str | None:
    """The text of a message's content, a string or parts; None where there is none.

    Raises:
        NotTextError: numbers and the like.
    """
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise NotTextError(f"content is {type(content).__name__} ({content!r:.40}), not text")
    found = []
    for part in content:
        text = _part_text(part, left_out)
        if text is not None:
            found.append(text)
    return "\n".join(found) if found else None


def is_parts(value: Any) -> bool:
    """Whether a value is a list of content parts (`{"type": "text", "text": …}`)."""
    if not isinstance(value, list) or not value or is_messages(value):
        return False
    return all(isinstance(p, dict) and ("type" in p or isinstance(p.get("text"), str)) for p in value)


def _part_text(part: Any, left_out: Callable[[str], None]) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise NotTextError(f"a part of the content is {type(part).__name__} ({part!r:.40}), not text")
    for key in TEXT_KEYS:
        if isinstance(part.get(key), str):
            return part[key]
    if isinstance(part.get("content"), (str, list)):
        return content_text(part["content"], left_out)
    left_out(f"parts of type {part.get('type', ', '.join(part))!s}")
    return None


def _key(message: Message, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if message.get(name) is not None), None)


def _plain(message: Message) -> str:
    calls = message.get("tool_calls") or message.get("function_call")
    return message["content"] + (json.dumps(calls, ensure_ascii=False, default=str) if calls else "")
