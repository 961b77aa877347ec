"""From a row (a JSON object, a line of a table) to its text: a named column, or what rows of language data usually hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from spectralquant.errors import SourceError, did_you_mean
from spectralquant.text.documents.conversation import (
    Conversation,
    NotTextError,
    content_text,
    is_messages,
    is_parts,
    messages_of,
)
from spectralquant.text.documents.report import Report

MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "contents")
TEXT = ("text",)
SYSTEM = ("system", "system_prompt", "instructions")
QUESTION = ("prompt", "instruction", "question", "query", "problem", "input")
CONTEXT = ("context", "input")
ANSWER = ("completion", "chosen", "response", "output", "answer", "solution", "reply")
OTHER = ("content", "document", "article", "body", "passage", "abstract", "markdown", "code", "sentence", "response")
TOOLS = ("tools", "functions")
SURROGATE = re.compile("[\ud800-\udfff]")
KNOWN = "text, messages, prompt with completion / chosen / response, content, document, body"


class RowReader:
    """Rows of one source to documents. It counts what it leaves out, and tells at the end."""

    def __init__(self, where: str, column: str | None, naming: str) -> None:
        """`naming`: how a user names a column of this source, as `file:PATH:COLUMN`."""
        self.where, self.column, self.naming = where, column, naming
        self.left_out: Counter[str] = Counter()
        self.used: dict[tuple[str, ...], tuple[str, ...]] = {}

    def documents(self, rows: Iterable[tuple[int, str, Any]], report: Report) -> Iterator[str]:
        """The documents of rows (number, place, value); `report` is told which columns are read and what is left out.

        Raises:
            SourceError: see `text`.
        """
        told: set[str] = set()
        seen = 0
        for number, place, row in rows:
            text = self.text(row, number, place)
            if len(self.used) > seen:
                seen = len(self.used)
                self._tell(self._columns(), told, report)
            if text is not None:
                yield text
        self._tell(self._columns() + self._counts(), told, report)

    def text(self, row: Any, number: int, place: str = "") -> str | None:
        """A row's document; None where its columns are empty (counted).

        Raises:
            SourceError: the row holds no text; it names the row, and the columns that there are.
        """
        try:
            found = self._named(row) if self.column else self._usual(row)
        except NotTextError as error:
            reason = str(error).rstrip(".")
            reason += "" if reason.endswith("?") else "."
            raise SourceError(f"{self.where}, row {number:,}{place}: {reason} {self._way_out()}") from None
        if found is None or not found.strip():
            self.left_out["rows without text"] += 1
            return None
        return self._mended(found)

    def _columns(self) -> list[str]:
        return [
            f"{self.where}: text is taken from {' + '.join(used)}; not read: {', '.join(others)}."
            for used, others in self.used.items()
            if others
        ]

    def _counts(self) -> list[str]:
        counts = ", ".join(f"{what} ({count:,})" for what, count in self.left_out.items())
        return [f"{self.where}: left out {counts}."] if counts else []

    @staticmethod
    def _tell(remarks: list[str], told: set[str], report: Report) -> None:
        for remark in remarks:
            if remark not in told:
                report(remark)
        told.update(remarks)

    def _way_out(self) -> str:
        return f"Correct or remove it, or name a column of text as {self.naming} (nested: body.messages)."

    def _usual(self, row: Any) -> str | None:
        if isinstance(row, str):
            return row
        if is_messages(row):
            return self._conversation(row)
        if not isinstance(row, dict):
            raise NotTextError(f"it is {_kind(row)}, not an object with columns")
        used, found = self._pick(row)
        if not used:
            if any(name in row for name in (*MESSAGES, *TEXT, *QUESTION, *ANSWER, *OTHER)):
                return None
            raise NotTextError(f"there is no text column ({KNOWN}); it has {', '.join(map(str, row)) or 'none'}"[:300])
        if used not in self.used:
            read = {name.partition(".")[0] for name in used}
            self.used[used] = tuple(k for k, v in row.items() if k not in read and _wordy(v))
        return found

    def _pick(self, row: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
        """The columns that are read, and the text that they make."""
        messages = _first(row, MESSAGES)
        if messages is not None:
            tools, system = _first(row, TOOLS), _first(row, SYSTEM)
            value = _json(row[messages], messages)
            if system and is_messages(value) and isinstance(row[system], str):
                value = [{"role": "system", "content": row[system]}, *value]
            used = tuple(n for n in (system, messages, tools) if n)
            return used, self._value(value, messages, _json(row[tools], tools) if tools else None)
        if (name := _first(row, TEXT)) is not None:
            return (name,), self._value(row[name], name)
        names = self._pair(row)
        if names:
            return names, self._joined([_json(row[n], n) for n in names], names)
        name = _first(row, OTHER)
        if name is None:
            return (), None
        value = _json(row[name], name)
        if isinstance(value, dict) and not is_messages([value]):
            used, found = self._nested(value)
            return tuple(f"{name}.{n}" for n in used) or (name,), found
        return (name,), self._value(value, name)

    def _nested(self, value: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
        """An object inside a row: the body of an OpenAI batch request, or the response to one."""
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            said = choices[0].get("message") or choices[0].get("text")
            return ("choices",), self._value([said] if isinstance(said, dict) else said, "choices")
        used, found = self._pick(value)
        if not used:
            raise NotTextError(f"its object has no text among {', '.join(map(str, value)) or 'no keys'}")
        return used, found

    def _pair(self, row: dict[str, Any]) -> tuple[str, ...]:
        question, answer = _first(row, QUESTION), _first(row, ANSWER)
        if question is None:
            return (answer,) if answer is not None and not isinstance(row[answer], dict) else ()
        context = _first(row, tuple(c for c in CONTEXT if c != question))
        system = _first(row, SYSTEM)
        return tuple(n for n in (system, question, context, answer) if n is not None)

    def _joined(self, values: list[Any], names: tuple[str, ...]) -> str | None:
        """Prompt and completion: message lists as one conversation, texts as they stand."""
        if any(is_messages(v) or (isinstance(v, dict) and is_messages([v])) for v in values):
            turns: list[Any] = []
            for value, name in zip(values, names, strict=True):
                role = "system" if name in SYSTEM else "assistant" if name in ANSWER else "user"
                one = (
                    value
                    if is_messages(value)
                    else [value if isinstance(value, dict) else {"role": role, "content": value}]
                )
                # `chosen` often repeats the prompt's turns
                turns = one if one[: len(turns)] == turns else turns + one
            return self._conversation(turns)
        found = ""
        for value, name in zip(values, names, strict=True):
            text = self._value(value, name)
            if text:
                touching = found and not found[-1].isspace() and not text[0].isspace()
                found += ("\n" if touching else "") + text
        return found

    def _named(self, row: Any) -> str | None:
        value = row
        path = [self.column] if isinstance(row, dict) and self.column in row else (self.column or "").split(".")
        for name in path:
            value = _step(value, name)
        value = _json(value, path[-1])
        if isinstance(value, dict) and not is_messages([value]):
            return self._nested(value)[1]
        return self._value(value, self.column or "")

    def _value(self, value: Any, name: str, tools: Any = None) -> str | None:
        """The text of one value.

        Raises:
            NotTextError: it is none.
        """
        if value is None:
            return None
        if isinstance(value, str):
            if value.lstrip()[:2] == "[{" and ("'role':" in value or "'from':" in value or "'type':" in value):
                raise NotTextError(f"column {name} holds Python's print of a list ({value[:30]!r}…); write it as JSON")
            return value
        if isinstance(value, (bytes, bytearray, memoryview)):
            try:
                return bytes(value).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise NotTextError(f"column {name} holds bytes that are not UTF-8 text") from None
        if is_messages(value):
            return self._conversation(value, tools)
        if isinstance(value, dict) and is_messages([value]):
            return self._conversation([value], tools)
        if is_parts(value):
            return content_text(value, self._note)
        if isinstance(value, list):
            if all(isinstance(v, str) for v in value):
                return "\n".join(value)
            raise NotTextError(f"column {name} holds a list that begins with {_kind(value[0])}, not text")
        if isinstance(value, dict):
            keys = ", ".join(map(str, value))
            raise NotTextError(f"column {name} is an object ({keys[:100]}), not text; name a part of it as {name}.KEY")
        raise NotTextError(f"column {name} holds {_kind(value)} ({value!r:.40}), not text")

    def _conversation(self, value: list[Any], tools: Any = None) -> Conversation | None:
        """A conversation; None where nothing in it is text."""
        tools = tools if isinstance(tools, list) and tools and all(isinstance(t, dict) for t in tools) else None
        messages = messages_of(value, self._note)
        said = any(m["content"].strip() or len(m) > 2 for m in messages)
        return Conversation(messages, tools) if said else None

    def _note(self, what: str) -> None:
        self.left_out[what] += 1

    def _mended(self, text: str) -> str:
        """Halves of surrogate pairs, which JSON lets through, would end in an error of the tokenizer."""
        if text.isascii() or not SURROGATE.search(text):
            return text
        self.left_out["broken characters (half a surrogate pair)"] += 1
        mend = lambda s: s.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # noqa: E731
        if isinstance(text, Conversation):
            return Conversation([{**m, "content": mend(m["content"])} for m in text.messages], text.tools)
        return mend(text)


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((n for n in names if row.get(n) is not None and row[n] != ""), None)


def _step(value: Any, name: str) -> Any:
    """One step of a path: a key, an index, or a key of every element of a list."""
    if value is None:
        return None
    if isinstance(value, str):
        value = _json(value, name)
    if isinstance(value, dict):
        if name not in value:
            keys = ", ".join(map(str, value))
            raise NotTextError(
                f"there is no column {name}; there is {keys[:200]}.{did_you_mean(name, map(str, value))}"
            )
        return value[name]
    if isinstance(value, list) and name.lstrip("-").isdecimal() and -len(value) <= int(name) < len(value):
        return value[int(name)]
    if isinstance(value, list) and value:
        found = [_step(element, name) for element in value]
        return [f for part in found for f in (part if isinstance(part, list) else [part]) if f is not None]
    raise NotTextError(f"there is no column {name} in {_kind(value)}")


def _json(value: Any, name: str) -> Any:
    """Tables often hold message lists as JSON strings."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{") or value.rstrip()[-1:] not in ("]", "}"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    structured = is_messages(found) or is_parts(found) or (name in (*MESSAGES, *TOOLS, "body") and bool(found))
    return found if structured else value


def _wordy(value: Any) -> bool:
    """Whether a column that is not read could have been meant: prose, or something nested."""
    return " " in value.strip() if isinstance(value, str) else isinstance(value, (list, dict)) and bool(value)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    kinds = {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}
    return kinds.get(type(value), f"a {type(value).__name__}")
