"""`MaskGenerator`: bits per component by Lagrangian search over measured distortion.

Source: Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers" (IEEE Trans. ASSP 36(9)).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from spectralquant.calibration.fixed.codebooks import fit_codebooks, fit_uniform_codebooks
from spectralquant.calibration.fixed.even import Even, even_mask
from spectralquant.calibration.fixed.importance import Importance
from spectralquant.codec.fixed.mask import FrequencyMask
from spectralquant.errors import InputError

CHOICES = (0, 1, 2, 3, 4, 5, 6, 8)
IN_PLACE_CHOICES = (0, 2, 4, 6, 8)
CHUNK = 512


class MaskGenerator:
    """Measure D_i(b) for every component and bit width once, then allocate for any budget."""

    def __init__(
        self,
        samples: Tensor,
        weight: Tensor | None = None,
        *,
        in_place: bool = False,
        even: Even | None = None,
        importance: Importance | None = None,
    ) -> None:
        """`samples`: float32 `[T, N]` coefficients in units in which all errors cost the same (times `weight: [N]`).

        `in_place` allows only evenly spaced points and the widths 0, 2, 4, 6 and 8, sums of what a kernel unpacks by shifts.
        even: bits are to be even among heads (see `fixed.even`). importance: of tokens, for all components.
        """
        self.even = even
        self.choices = IN_PLACE_CHOICES if in_place else CHOICES
        fit = fit_uniform_codebooks if in_place else fit_codebooks
        errors = [[] for _ in self.choices]
        for index in torch.arange(samples.shape[1], device=samples.device).split(CHUNK):
            part, cost = samples.T[index].contiguous(), None if importance is None else importance.of(index)
            for i, bits in enumerate(self.choices):
                if bits == 0:
                    square = part.square()
                    errors[i].append((square if cost is None else square * cost).mean(1))
                else:
                    errors[i].append(fit(part, bits, cost)[1])
        self.distortion = torch.stack([torch.cat(e) for e in errors])
        if weight is not None:
            self.distortion = self.distortion * weight
        self.count = samples.shape[1]

    def part(self, index: Tensor) -> MaskGenerator:
        """For some of the components."""
        part = copy.copy(self)
        part.distortion, part.count = self.distortion[:, index.to(self.distortion.device)], len(index)
        return part

    def generate(self, bits_per_component: float) -> FrequencyMask:
        """The mask of least total distortion with at most this many bits per component on average.

        Raises:
            InputError: the budget is outside what the bit widths can give.
        """
        if not 0 < bits_per_component <= self.choices[-1]:
            raise InputError(
                f"{bits_per_component:g} bits per scalar is outside what fixed-rate tiers offer (above 0 to {self.choices[-1]})."
            )
        if self.even is not None:
            none, one, two = (self.distortion[self.choices.index(b)].view(-1, self.even.dim) for b in (0, 4, 8))
            return even_mask(torch.cat([none - one, one - two], dim=1), self.even.heads, bits_per_component)
        cost = torch.tensor(self.choices, device=self.distortion.device, dtype=self.distortion.dtype)[:, None]
        budget = bits_per_component * self.count
        low, high = -60.0, 60.0
        for _ in range(80):
            middle = (low + high) / 2
            choice = (self.distortion + 2.0**middle * cost).argmin(0)
            low, high = (middle, high) if cost[choice, 0].sum() > budget else (low, middle)
        choice = (self.distortion + 2.0**high * cost).argmin(0)
        return FrequencyMask(torch.tensor(self.choices, dtype=torch.uint8, device=choice.device)[choice].cpu())
