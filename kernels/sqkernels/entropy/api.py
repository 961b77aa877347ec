"""Checked entry points of the range coder."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from sqkernels.common import runtime
from sqkernels.entropy import native, reference
from sqkernels.entropy.contexts import Contexts
from sqkernels.entropy.layout import StreamTable
from sqkernels.entropy.tables import RansTables


@dataclass(frozen=True)
class Encoded:
    """words: uint16 `[W]`, stream after stream. counts: int64 `[S]` words of each. states: uint32 `[lanes]`."""

    words: Tensor
    counts: Tensor
    states: Tensor


@dataclass(frozen=True)
class Decoded:
    """symbols: `[R, N]`, 0 where a value escaped. positions: int64 `[E]`, flat places of those, stream after stream.
    finals: uint16 `[lanes]`, what the lanes held at first. status: int32 `[S]`, 0 where a stream decoded as it should.
    """

    symbols: Tensor
    positions: Tensor
    finals: Tensor
    status: Tensor


def encode(
    symbols: Tensor,
    initial: Tensor,
    table: StreamTable,
    contexts: Contexts,
    tables: RansTables,
    *,
    backend: str = "auto",
) -> Encoded:
    """Code a matrix of symbols int16 or int32 `[R, N]`; blocks side by side as `table` says.

    initial: uint16 `[lanes]`, numbers that travel in the lanes' states at no cost. Values without a frequency are coded
    as escapes; `escape_positions` tells which. All backends give the same words and states: "triton", on the CPU "native" (in C)
    and "reference" (numpy); "auto" takes the fastest that is there.

    Raises:
        ValueError: shapes, dtypes or ranges disagree. RuntimeError: a backend was asked for that cannot run here.
    """
    _check(symbols, table, contexts, tables)
    if initial.dtype != torch.uint16 or initial.shape != (table.lanes,):
        raise ValueError(f"initial must be uint16 [{table.lanes}], not {initial.dtype} {list(initial.shape)}")
    if (coder := _on_cpu(backend, symbols)) is not None:
        words, counts, states = coder.encode(symbols.numpy(), initial.numpy(), table, contexts, tables)
        return Encoded(torch.from_numpy(words), torch.from_numpy(counts), torch.from_numpy(states))
    from sqkernels.entropy.ops import encode as launch

    return Encoded(*launch(symbols, initial, table, contexts, tables))


def escape_positions(
    symbols: Tensor, table: StreamTable, contexts: Contexts, tables: RansTables, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Flat places int64 `[E]` in symbols (int16 or int32 `[R, N]`) of values that escape, stream after stream in decoding order, and
    how many each stream has, int64 `[S]`.

    Raises:
        ValueError: shapes, dtypes or ranges disagree. RuntimeError: a backend was asked for that cannot run here.
    """
    _check(symbols, table, contexts, tables)
    if (coder := _on_cpu(backend, symbols)) is not None:
        at, counts = coder.escape_positions(symbols.numpy(), table, contexts, tables)
        return torch.from_numpy(at), torch.from_numpy(counts)
    from sqkernels.entropy.ops import escape_positions as launch

    return launch(symbols, table, contexts, tables)


def decode(
    words: Tensor,
    counts: Tensor,
    states: Tensor,
    escapes: Tensor,
    table: StreamTable,
    contexts: Contexts,
    tables: RansTables,
    *,
    dtype: torch.dtype = torch.int16,
    backend: str = "auto",
) -> Decoded:
    """Inverse of `encode`: symbols of `dtype` (int8, int16 or int32).

    words: uint16 `[W]` and counts: int64 `[S]`, states: uint32 `[lanes]` as `encode` gave them. escapes: int64 `[S]`, as
    `escape_positions` counted them. counts and escapes lie on the CPU. Damaged words never make a kernel read or write
    outside its arrays: streams that end wrongly are marked in `status` and their symbols are without meaning.

    Raises:
        ValueError: shapes, dtypes or ranges disagree. RuntimeError: a backend was asked for that cannot run here.
    """
    contexts.check(tables.count, table.rows, table.columns, len(table.shapes))
    if dtype not in (torch.int8, torch.int16, torch.int32):
        raise ValueError(f"symbols can be int8, int16 or int32, not {dtype}")
    for name, t, kind, n in (
        ("counts", counts, torch.int64, len(table)),
        ("escapes", escapes, torch.int64, len(table)),
        ("states", states, torch.uint32, table.lanes),
    ):
        if t.dtype != kind or t.shape != (n,):
            raise ValueError(f"{name} must be {kind} [{n}], not {t.dtype} {list(t.shape)}")
    if counts.device.type != "cpu" or escapes.device.type != "cpu":
        raise ValueError("counts and escapes must lie on the CPU, where a packet's header is read")
    if words.dtype != torch.uint16 or words.dim() != 1 or int(counts.sum()) != len(words) or bool((counts < 0).any()):
        raise ValueError("words must be uint16 [W], as many as counts say")
    capacity = torch.from_numpy(table.steps) * torch.from_numpy(table.fields[:, 5]).long()
    if bool(((escapes < 0) | (escapes > capacity)).any()):
        raise ValueError("a stream cannot have more escapes than symbols")
    if (coder := _on_cpu(backend, words)) is not None:
        out = torch.zeros(table.rows, table.columns, dtype=dtype)
        arrays = (t.numpy() for t in (words, counts, states, escapes))
        positions, finals, status = coder.decode(*arrays, table, contexts, tables, out.numpy())
        return Decoded(out, *(torch.from_numpy(a) for a in (positions, finals, status)))
    from sqkernels.entropy.ops import decode as launch

    return Decoded(*launch(words, counts, states, escapes, table, contexts, tables, dtype))


def _check(symbols: Tensor, table: StreamTable, contexts: Contexts, tables: RansTables) -> None:
    contexts.check(tables.count, table.rows, table.columns, len(table.shapes))
    if symbols.dtype not in (torch.int16, torch.int32) or symbols.shape != (table.rows, table.columns):
        raise ValueError(
            f"symbols must be int16 or int32 [{table.rows}, {table.columns}], not {symbols.dtype} {list(symbols.shape)}"
        )


def _on_cpu(backend: str, tensor: Tensor) -> ModuleType | None:
    """What codes on the CPU, or None where Triton does."""
    if backend == "native" or (backend == "auto" and tensor.device.type == "cpu" and native.available()):
        chosen = native
    elif runtime.choose(backend, tensor.device) == "reference":
        chosen = reference
    else:
        return None
    if tensor.device.type != "cpu":
        raise ValueError(f"backend {backend!r} works on CPU tensors; move them there, or use backend='triton'")
    return chosen
