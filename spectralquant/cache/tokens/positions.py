"""`TokenPositions`: where a cache's tokens stand, as far as that is not plain numbering from 0."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.rotary_tables import Places


@dataclass
class TokenPositions:
    """Positions of B sequences of T tokens, and the frequencies their keys were rotated with.

    ids: int32 `[A, B, T]` (A axes), or None while every token stands at its index. frequencies: states `[F]` of a dynamic
    model's rotary modules, which: int32 `[T]`, the state of each token's forward pass (None in other models).
    """

    ids: Tensor | None = None
    frequencies: list[Tensor] = field(default_factory=list)
    which: Tensor | None = None

    def append(self, past: int, new: int, batch: int, given: Tensor | None, state: Tensor | None) -> None:
        """Note `new` tokens after `past`: positions `given: [B or 1, T]` or `[A, B or 1, T]`, None for their index.

        Raises:
            UnsupportedModelError: positions that do not belong to the new tokens.
        """
        if given is not None and (given.shape[-1] != new or given.shape[-2] not in (1, batch)):
            raise UnsupportedModelError(
                f"The model rotates {list(given.shape)} positions in a forward pass over {batch} sequences of {new} new "
                "tokens, so it is not known where these stand. Use a model that rotates new tokens only."
            )
        if given is not None:
            self._note(past, given if given.dim() == 3 else given[None], batch)
        elif self.ids is not None:
            index = torch.arange(past, past + new, device=self.ids.device, dtype=torch.int32)
            self.ids = torch.cat([self.ids, index.expand(*self.ids.shape[:2], new)], dim=2)
        if state is not None:
            known = next((i for i, used in enumerate(self.frequencies) if torch.equal(used, state)), None)
            if known is None:
                known = len(self.frequencies)
                self.frequencies.append(state)
            added = torch.full((new,), known, dtype=torch.int32)
            self.which = added if self.which is None else torch.cat([self.which, added])

    def _note(self, past: int, given: Tensor, batch: int) -> None:
        axes, _, new = given.shape
        given = given.to(torch.int32).expand(axes, batch, new)
        index = torch.arange(past, past + new, device=given.device, dtype=torch.int32)
        if self.ids is None:
            if bool((given == index).all()):
                return
            before = torch.arange(past, device=given.device, dtype=torch.int32)
            self.ids = before.expand(axes, batch, past)
        if self.ids.shape[0] != axes:
            both = max(axes, self.ids.shape[0])
            if min(axes, self.ids.shape[0]) != 1:
                raise UnsupportedModelError(f"Positions had {self.ids.shape[0]} axes before and have {axes} now.")
            self.ids, given = self.ids.expand(both, -1, -1), given.expand(both, -1, -1)
        self.ids = torch.cat([self.ids, given.to(self.ids.device)], dim=2)

    def places(self, row: int, start: int, stop: int) -> Places:
        """Tokens start … stop of one sequence."""
        if self.ids is None:
            positions, key = torch.arange(start, stop)[None], (None, start, stop)
        else:
            positions, key = self.ids[:, row, start:stop].long(), (row, start, stop)
        if self.which is None:
            return Places(positions, key=key)
        return Places(positions, torch.stack(self.frequencies), self.which[start:stop].long(), key)

    @property
    def numbered(self) -> bool:
        """Whether every token stands at its index."""
        if self.ids is None:
            return True
        return bool((self.ids == torch.arange(self.ids.shape[2], device=self.ids.device)).all())

    def copy(self) -> TokenPositions:
        """The same positions, to be appended to independently (tensors are replaced, never changed)."""
        return replace(self, frequencies=list(self.frequencies))

    def truncate(self, target: int) -> None:
        """Keep the oldest `target` tokens."""
        if self.ids is not None:
            self.ids = self.ids[:, :, :target].clone()
        if self.which is not None:
            self.which = self.which[:target].clone()

    def select_sequences(self, index: Tensor) -> None:
        """Keep sequences `index`, in that order."""
        if self.ids is not None:
            self.ids = self.ids.index_select(1, index.to(self.ids.device))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor held, by name: for accounting and snapshots."""
        every = {"positions": self.ids, "rotary_which": self.which}
        if self.frequencies:
            every["rotary_frequencies"] = torch.stack(self.frequencies)
        return {name: t for name, t in every.items() if t is not None}

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], device: torch.device) -> TokenPositions:
        """From what `tensors` gave."""
        ids, states = tensors.get("positions"), tensors.get("rotary_frequencies")
        if ids is not None:
            ids = ids.to(device)
        return cls(ids, [] if states is None else list(states.cpu()), tensors.get("rotary_which"))
