"""How a layer holds tokens that are not coded: as they came, or at 8 bits a number once their own pass has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from spectralquant.codec.exact import int8_decode, int8_encode
from spectralquant.errors import InputError


@dataclass(frozen=True)
class ExactTokens:
    """Tokens `[B, Hk, n, D]` in the model's dtype. All changes give new tokens; storage is never written to."""

    x: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Tokens of a pass under way."""
        return cls(x)

    @property
    def shape(self) -> torch.Size:
        """B, Hk, n, D."""
        return self.x.shape

    def dense(self) -> Tensor:
        """As attention reads them."""
        return self.x

    def cut(self, start: int, stop: int | None, *, own: bool = True) -> Self:
        """Tokens start … stop; own: in storage of their own."""
        some = self.x[:, :, start:stop]
        return type(self)(some.clone() if own else some)

    def extended(self, x: Tensor) -> Self:
        """These, and `x` after them."""
        return type(self)(torch.cat([self.x, x], dim=2))

    def preceded_by(self, x: Tensor) -> Self:
        """`x`, which was coded until now, and these after it."""
        return type(self)(torch.cat([x, self.x], dim=2))

    def followed_by(self, other: Self) -> Self:
        """These tokens, and others after them."""
        return type(self)(torch.cat([self.x, other.x], dim=2))

    def select(self, index: Tensor) -> Self:
        """Sequences `index`."""
        return type(self)(self.x.index_select(0, index.to(self.x.device)))

    def rested(self) -> Self:
        """The same once the pass has ended."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by a suffix to its name."""
        return {"": self.x}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        """From what `tensors` gave."""
        return cls(tensors[""])


@dataclass(frozen=True)
class RoundedTokens:
    """Tokens `[B, Hk, n, D]` as codes int8 and scales float16 `[B, Hk, n, 1]`, the `new` ones of a pass as they came.

    A block that leaves in the pass that brought it is coded from what came; queries of that pass read what came. Codes are
    cut and joined, never made again, so that nothing drifts.
    """

    codes: Tensor
    scales: Tensor
    new: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Tokens of a pass under way."""
        none = x.new_zeros(*x.shape[:2], 0, x.shape[3])
        return cls(*int8_encode_empty(none), x)

    @property
    def shape(self) -> torch.Size:
        """B, Hk, n, D."""
        batch, heads, count, dim = self.new.shape
        return torch.Size((batch, heads, self.codes.shape[2] + count, dim))

    def dense(self) -> Tensor:
        """As attention reads them, in the model's dtype."""
        if not self.codes.shape[2]:
            return self.new
        old = int8_decode(self.codes, self.scales).to(self.new.dtype)
        return torch.cat([old, self.new], dim=2) if self.new.shape[2] else old

    def cut(self, start: int, stop: int | None, *, own: bool = True) -> Self:
        """Tokens start … stop; own: in storage of their own."""
        first, last, _ = slice(start, stop).indices(self.shape[2])
        count = self.codes.shape[2]
        old = slice(min(first, count), min(last, count))
        parts = (
            self.codes[:, :, old],
            self.scales[:, :, old],
            self.new[:, :, max(0, first - count) : max(0, last - count)],
        )
        return type(self)(*(x.clone() if own else x for x in parts))

    def extended(self, x: Tensor) -> Self:
        """These, and `x` after them."""
        return type(self)(self.codes, self.scales, torch.cat([self.new, x], dim=2))

    def preceded_by(self, x: Tensor) -> Self:
        """`x`, which was coded until now, and these after it."""
        codes, scales = int8_encode(x)
        return type(self)(torch.cat([codes, self.codes], dim=2), torch.cat([scales, self.scales], dim=2), self.new)

    def followed_by(self, other: Self) -> Self:
        """These tokens, of which none is new, and others after them."""
        own = self.rested()
        both = zip((own.codes, own.scales), (other.codes, other.scales), strict=True)
        return type(self)(*(torch.cat(pair, dim=2) for pair in both), other.new)

    def select(self, index: Tensor) -> Self:
        """Sequences `index`."""
        return type(self)(*(x.index_select(0, index.to(x.device)) for x in (self.codes, self.scales, self.new)))

    def rested(self) -> Self:
        """The same once the pass has ended: new tokens at 8 bits as well."""
        if not self.new.shape[2]:
            return self
        codes, scales = int8_encode(self.new)
        whole = (torch.cat([self.codes, codes], dim=2), torch.cat([self.scales, scales], dim=2))
        return type(self)(*whole, self.new.new_zeros(*self.new.shape[:2], 0, self.new.shape[3]))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by a suffix to its name."""
        return {".codes": self.codes, ".scales": self.scales, ".new": self.new}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor]) -> Self:
        """From what `tensors` gave.

        Raises:
            InputError: they do not belong together.
        """
        codes, scales, new = (tensors[name] for name in (".codes", ".scales", ".new"))
        fits = codes.dim() == new.dim() == 4 and scales.shape == (*codes.shape[:3], 1)
        fits = fits and (*codes.shape[:2], codes.shape[3]) == (*new.shape[:2], new.shape[3])
        if not fits or (codes.dtype, scales.dtype) != (torch.int8, torch.float16):
            raise InputError("its tokens of 8 bits are no codes and scales")
        return cls(codes, scales, new)


def int8_encode_empty(none: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of no tokens `[B, Hk, 0, D]`."""
    return none.to(torch.int8), none[..., :1].to(torch.float16)


HOLDERS: dict[int, type[ExactTokens] | type[RoundedTokens]] = {16: ExactTokens, 8: RoundedTokens}
"""By `exact_bits`; 16 stands for the model's own dtype."""


def require_exact_bits(bits: int, *, lossless: bool) -> None:
    """Refuse widths that nothing holds, and rounding in a cache whose tier keeps every bit.

    Raises:
        InputError: naming the way out.
    """
    if isinstance(bits, bool) or bits not in HOLDERS:
        raise InputError(f"exact_bits={bits!r} is not one of 8, 16.")
    if lossless and bits == 8:
        raise InputError(
            "8 bits round the first and the newest tokens, and the exact tier keeps every bit. Give a profile and one of the "
            "tiers hot, warm and cold, or hold these tokens at 16 bits."
        )


class HeldTokens:
    """An attribute of a layer that reads as a tensor `[B, Hk, n, D]`, and is held as the layer's `holder` does."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = held_name(name)

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        if layer is None:
            return self
        held = vars(layer).get(self.name)
        return None if held is None else held.dense()

    def __set__(self, layer: Any, x: Tensor | None) -> None:
        vars(layer)[self.name] = None if x is None else layer.holder.of(x)


def held_name(name: str) -> str:
    """Where a layer keeps what holds an attribute."""
    return f"_{name}"
