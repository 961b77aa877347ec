"""Making and reading results files: every one goes through the types of `spectralquant.results.schema`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spectralquant.errors import InputError, did_you_mean
from spectralquant.files import read_json
from spectralquant.results.base import Row, undeclared
from spectralquant.results.schema import KINDS, PREFIX, RESULTS_SCHEMA, Results


def results_file(
    kind: str, rows: Sequence[Row | Mapping[str, Any]], provenance: Mapping[str, Any], **extra: Any
) -> Results:
    """A results file of a kind of `KINDS`; rows and parts may be typed already, or mappings.

    Raises:
        ValueError: a fault of the caller: a field that the kind's type does not declare, or of the wrong type.
    """
    result = KINDS[kind].model_validate(
        {
            "schema_version": RESULTS_SCHEMA,
            "kind": PREFIX + kind,
            "provenance": dict(provenance),
            **extra,
            "rows": [row if isinstance(row, Row) else dict(row) for row in rows],
        }
    )
    if (name := undeclared(result)) is not None:
        raise ValueError(f"{name} is not declared in spectralquant.results")
    return result


def read_results(path: str | Path) -> Results:
    """A results file.

    Raises:
        InputError: missing, not JSON, not a results file, of another schema, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder. Pass a results file.")
    if not path.is_file():
        raise InputError(f"There is no results file {path}. Check the path.")
    raw = read_json(path, "The results file")
    if (
        not isinstance(raw, dict)
        or not str(raw.get("kind", "")).startswith(PREFIX)
        or not isinstance(raw.get("rows"), list)
    ):
        raise InputError(
            f"{path} is not a results file of this toolkit (it has no kind and rows). Pass a file that --json or `sq study` wrote."
        )
    if raw.get("schema_version") != RESULTS_SCHEMA:
        raise InputError(
            f"{path} has results schema {raw.get('schema_version')}; this version reads {RESULTS_SCHEMA}. "
            "Write it anew with this version."
        )
    kind = str(raw["kind"]).removeprefix(PREFIX)
    if kind not in KINDS:
        raise InputError(
            f"{path} holds {kind!r} results, which this version does not know.{did_you_mean(kind, KINDS)} "
            "Write it anew with this version."
        )
    try:
        return KINDS[kind].model_validate(raw, strict=True)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {_first(error)}. Write it anew with this version.") from error


def _first(error: ValidationError) -> str:
    """`row 3, kl_nats: …` of the first fault."""
    fault = error.errors(include_url=False, include_input=True)[0]
    where = [f"row {part + 1}" if isinstance(part, int) else str(part) for part in fault["loc"] if part != "rows"]
    said = " ".join(str(fault["msg"]).split())
    value = "" if fault["type"] == "missing" else f" (it is {str(fault['input'])[:40]!r})"
    return f"{', '.join(where)}: {said[:1].lower()}{said[1:]}{value}"


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Around code that takes a results file's rows apart: a figure that is missing there is the file's fault.

    Raises:
        InputError: naming the file and what was wrong.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"The results file {path} is damaged or from another version: {reason}. Write it anew with this version."
        ) from error
