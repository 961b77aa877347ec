"""`FrequencyMask`: how many bits each spectral component gets."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FrequencyMask:
    """Bits per component, 0 = dropped: uint8 `[N]` (any number of groups, group after group)."""

    bits: Tensor

    @property
    def binary(self) -> Tensor:
        """Which components are kept at all, bool `[N]`."""
        return self.bits > 0

    @property
    def bits_per_token(self) -> int:
        """Bits of one token's codes, before padding."""
        return int(self.bits.long().sum())
