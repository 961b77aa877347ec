"""What an attention operator reads, as one object, and the launches that dense and index decode share.

Shape letters as in `device`: B sequences, Hk key/value heads of G query heads each, D components.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqkernels.common.launch import LayoutArguments, bucket, next_power
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.runtime import overlap

LOG2E = 1.4426950408889634
COLUMNS = 32
PART_TOKENS = 64
EXACT_BLOCK = 32
MAX_PARTS = 32
FEW_HEADS = 256
REDUCE_COLUMNS = 32
REDUCE_TILE = 128 * 32


@dataclass(frozen=True)
class AttentionTensors:
    """Tensors of one call, by the places where an operator takes them: query `[B, H, D]`; a `RowPages`; its `RowMatrices`;
    an `ExactTokens`. window_tokens: int32 `[B]`, or empty where every token of the window is real."""

    query: Tensor
    storage: Tensor
    pages: Tensor
    first: Tensor
    tokens: Tensor
    heads: Tensor
    key_decode: Tensor
    key_constant: Tensor
    value_decode: Tensor
    value_constant: Tensor
    sink_keys: Tensor
    sink_values: Tensor
    window_keys: Tensor
    window_values: Tensor
    window_tokens: Tensor

    @classmethod
    def of(cls, query: Tensor, pages: RowPages, exact: ExactTokens) -> AttentionTensors:
        """From what the checked entry points take."""
        m = pages.matrices
        kept = (exact.sink_keys, exact.sink_values, exact.window_keys, exact.window_values)
        return cls(
            query.contiguous(),
            *(pages.storage, pages.pages, pages.first, pages.tokens),
            *(m.heads, m.key.decode, m.key.constant, m.value.decode, m.value.constant),
            *(x.contiguous() for x in kept),
            pages.tokens.new_empty(0) if exact.tokens is None else exact.tokens,
        )

    def as_list(self) -> list[Tensor]:
        """As a `torch.library` operator takes them: `AttentionTensors(*tensors)` gives the object back."""
        return list(vars(self).values())


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention operator: tensors, layout and scale."""

    tensors: AttentionTensors
    layout: LayoutArguments
    scaling: float

    @classmethod
    def from_operator(cls, tensors: Sequence[Tensor], layout: Sequence[int], scaling: float) -> AttentionCall:
        """From an operator's arguments."""
        return cls(AttentionTensors(*tensors), LayoutArguments.from_numbers(layout), scaling)

    @functools.cached_property
    def group(self) -> int:
        """Query heads of a key/value head."""
        return self.tensors.query.shape[1] // self.layout.heads

    @functools.cached_property
    def kv_heads(self) -> int:
        """Key/value heads of all sequences: B·Hk, the first axis of every grid."""
        return self.tensors.query.shape[0] * self.layout.heads

    @property
    def n_pages(self) -> int:
        """Pages of a sequence."""
        return self.tensors.pages.shape[1]

    @property
    def codes(self) -> dict[str, Any]:
        """Where a kernel finds the coded tokens."""
        t = self.tensors
        names = {"STORAGE": t.storage, "PAGES": t.pages, "FIRST": t.first, "TOKENS": t.tokens, "HEADS": t.heads}
        return names | {"n_pages": self.n_pages}

    @property
    def products(self) -> dict[str, Any]:
        """Compile-time arguments of a kernel that attends to codes."""
        rows = 8 if self.group <= 8 else 16
        return {"HK": self.layout.heads, "G": self.group, "N": rows, **self.layout.constants}

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room on the call's device."""
        return self.tensors.query.new_empty(shape, dtype=dtype)


@dataclass(frozen=True)
class Partials:
    """Sums over value planes float32 `[B·Hk, splits, G, planes]` and (m, norm) `[B·Hk, splits, 2, 16]` of every split."""

    part: Tensor
    stats: Tensor

    @classmethod
    def of(cls, call: AttentionCall, splits: int) -> Partials:
        """Room for `splits` splits of the coded tokens."""
        part = call.new(call.kv_heads, splits, call.group, call.layout.value_planes)
        return cls(part, call.new(call.kv_heads, splits, 2, 16))

    @property
    def arguments(self) -> dict[str, Tensor]:
        return {"PART": self.part, "STATS": self.stats}


@dataclass(frozen=True)
class Preparation:
    """The query in the coordinates of the key planes, and attention to the exact tokens; see `prepare.prepare_role`."""

    call: AttentionCall
    latents: Tensor
    constant: Tensor
    part_exact: Tensor
    stats_exact: Tensor
    part_tokens: int

    @classmethod
    def of(cls, call: AttentionCall) -> Preparation:
        """Room for what the preparation writes."""
        tokens, dim = call.tensors.window_keys.shape[2:]
        part_tokens = PART_TOKENS * max(1, -(-tokens // (PART_TOKENS * MAX_PARTS)))
        parts = max(1, -(-tokens // part_tokens))
        return cls(
            call,
            call.new(call.kv_heads, 16, call.layout.key_planes, dtype=torch.float16),
            call.new(call.kv_heads, 16),
            call.new(call.kv_heads, parts, call.group, dim),
            call.new(call.kv_heads, parts, 2, 16),
            part_tokens,
        )

    @property
    def parts(self) -> int:
        """Parts of the exact tokens."""
        return self.part_exact.shape[1]

    @property
    def roles(self) -> int:
        """Programs a key/value head."""
        return self.parts + self.call.layout.key_planes // COLUMNS

    @property
    def query_latents(self) -> dict[str, Tensor]:
        """What the kernels over codes read of it."""
        return {"LATENTS": self.latents, "CONSTANT": self.constant}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of a kernel whose programs prepare."""
        t = self.call.tensors
        dim = t.query.shape[2]
        return {
            "Q": t.query,
            "KEY_DECODE": t.key_decode,
            "KEY_CONSTANT": t.key_constant,
            "SK": t.sink_keys,
            "SV": t.sink_values,
            "WK": t.window_keys,
            "WV": t.window_values,
            "WINDOW": t.window_tokens,
            **self.query_latents,
            "PART_EXACT": self.part_exact,
            "STATS_EXACT": self.stats_exact,
            "scale": self.call.scaling * LOG2E,
            "sinks": t.sink_keys.shape[2],
            "window": t.window_keys.shape[2],
            "part_tokens": self.part_tokens,
            "HK": self.call.layout.heads,
            "G": self.call.group,
            "D": dim,
            "DP": next_power(dim),
            "PLANES": self.call.layout.key_planes,
            "COLUMNS": COLUMNS,
            "RAGGED": t.window_tokens.numel() > 0,
            "PARTS": self.parts,
            "BLOCK": EXACT_BLOCK,
        }

    def run(self, overlapping: bool, early: bool) -> None:
        """The preparation by itself. early: what comes next starts at once; see `prepare_kernel`."""
        from sqkernels.common.prepare import prepare_kernel

        device = self.call.tensors.query.device
        prepare_kernel[(self.call.kv_heads, self.roles)](
            **self.arguments, EARLY=early, **overlap(device, overlapping), num_warps=4
        )


def reduce_arguments(partials: Partials, preparation: Preparation, out: Tensor) -> dict[str, Any]:
    """Tensors of the reduction, which writes `out: [B, H, D]`."""
    tensors = preparation.call.tensors
    return {
        **partials.arguments,
        "PART_EXACT": preparation.part_exact,
        "STATS_EXACT": preparation.stats_exact,
        "VALUE_DECODE": tensors.value_decode,
        "VALUE_CONSTANT": tensors.value_constant,
        "OUT": out,
    }


def reduce(partials: Partials, preparation: Preparation, overlapping: bool) -> Tensor:
    """Merge splits and exact tokens: `[B, H, D]` like the query."""
    from sqkernels.common.reduce import reduce_kernel

    call = preparation.call
    query = call.tensors.query
    batch, heads, dim = query.shape
    splits, planes = partials.part.shape[1], partials.part.shape[3]
    out = torch.empty_like(query)
    columns = REDUCE_COLUMNS if batch * heads < FEW_HEADS else next_power(dim)
    reduce_kernel[(batch * heads, -(-dim // columns))](
        **reduce_arguments(partials, preparation, out),
        splits=splits,
        HK=call.layout.heads,
        G=call.group,
        D=dim,
        SP=bucket(splits),
        PARTS=preparation.parts,
        PARTS_P=next_power(preparation.parts),
        PLANES=planes,
        PLANES_P=next_power(planes),
        COLUMNS=columns,
        CHUNK=min(REDUCE_TILE // columns, bucket(splits)),
        **overlap(query.device, overlapping),
        num_warps=4,
    )
    return out
