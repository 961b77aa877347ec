"""Checked entry points for bit packing."""

from __future__ import annotations

import torch
from torch import Tensor

from sqkernels.bitpack.reference import BitRows


def packed_bytes(bits: Tensor) -> int:
    """Bytes of one token's packed codes: Σ bits, rounded up to whole bytes."""
    return -(-int(bits.long().sum()) // 8)


def pack_codes(codes: Tensor, bits: Tensor) -> Tensor:
    """Pack codes uint8 `[T, R]`, component r using `bits[r]` ≤ 8 bits, into uint8 `[T, packed_bytes(bits)]`.

    Raises:
        ValueError: shapes disagree, a width is over 8, or a code does not fit its width.
    """
    _check(codes.shape[-1], bits)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, not {codes.dtype}")
    limit = torch.pow(2, bits.to(codes.device).to(torch.int32))
    if bool((codes.to(torch.int32) >= limit).any()):
        raise ValueError("a code does not fit the bits of its component")
    return BitRows(bits, codes.device).pack(codes)


def unpack_codes(packed: Tensor, bits: Tensor) -> Tensor:
    """Codes uint8 `[T, R]` of `packed: [T, packed_bytes(bits)]`.

    Raises:
        ValueError: the row length does not fit `bits`.
    """
    _check(len(bits), bits)
    if packed.shape[-1] != packed_bytes(bits):
        raise ValueError(f"rows of {packed.shape[-1]} bytes, expected {packed_bytes(bits)}")
    return BitRows(bits, packed.device).unpack(packed)


def _check(rank: int, bits: Tensor) -> None:
    if bits.dim() != 1 or len(bits) != rank:
        raise ValueError(f"bits must be one width per component, got {tuple(bits.shape)} for {rank} components")
    if len(bits) and int(bits.max()) > 8:
        raise ValueError("at most 8 bits per component")
