"""A saved cache comes from outside: its checksum, and one clear error where its content is not a cache's."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralquant.errors import InputError, SpectralQuantError


def file_metadata(format_name: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, str]:
    """Metadata of a snapshot file, with a SHA-256 over its facts and tensors."""
    text = json.dumps(facts)
    return {"format": format_name, "facts": text, "sha256": content_sha256(text, tensors)}


def checked_facts(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The facts of a snapshot file.

    Raises:
        InputError: damaged.
    """
    text = metadata.get("facts", "")
    if metadata.get("sha256") != content_sha256(text, tensors):
        raise InputError(f"{path} is damaged (checksum), or was saved by an older version. Save the cache again.")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no saved cache: its facts are not JSON ({error}).") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is no saved cache: its facts are no table.")
    return facts


def content_sha256(facts: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of facts and of every tensor's name, kind, shape and bytes, hexadecimal."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def restoring(path: str | Path) -> Iterator[None]:
    """Around code that makes a cache from a file's content: what does not fit together is the file's fault.

    Raises:
        InputError: naming the file and what was wrong.
    """
    try:
        yield
    except SpectralQuantError as error:
        raise type(error)(f"{path} cannot be used: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is no saved cache of this model and profile: {reason}. Save the cache again."
        ) from error
