"""`Contexts`: which table codes which symbol."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLASSES = 16


@dataclass(frozen=True)
class Contexts:
    """A symbol's table follows from its row, its column's class and, where blocks shift tables, its row's group.

    choice: uint8 `[R, 16]`, the table of each row and class. classes: uint8 `[2, N]`, the class of each column for the
    rows before `split` and for those from it on. shifts: int16 `[B, groups]`, added to the tables of a block's rows by
    `group: int32 [R]` and clamped to the tables there are; None for none.
    """

    choice: Tensor
    classes: Tensor
    split: int
    shifts: Tensor | None = None
    group: Tensor | None = None

    def check(self, tables: int, rows: int, columns: int, blocks: int) -> None:
        """Raise ValueError unless shapes, dtypes and ranges fit."""
        if self.choice.dtype != torch.uint8 or self.choice.shape != (rows, CLASSES) or not 0 <= self.split <= rows:
            raise ValueError(f"choice must be uint8 [{rows}, {CLASSES}], split between 0 and {rows}")
        if self.classes.dtype != torch.uint8 or self.classes.shape != (2, columns):
            raise ValueError(
                f"classes must be uint8 [2, {columns}], not {self.classes.dtype} {list(self.classes.shape)}"
            )
        if (self.shifts is None) != (self.group is None):
            raise ValueError("shifts and group come together")
        if self.shifts is not None:
            if self.shifts.dtype != torch.int16 or self.shifts.dim() != 2 or len(self.shifts) != blocks:
                raise ValueError(f"shifts must be int16 [{blocks}, groups]")
            if self.group.dtype != torch.int32 or self.group.shape != (rows,):
                raise ValueError(f"group must be int32 [{rows}]")
        if self.choice.device.type == "cpu":  # on a GPU the kernels clamp, so that nobody has to wait
            self._check_ranges(tables)

    def _check_ranges(self, tables: int) -> None:
        if self.choice.numel() and int(self.choice.max()) >= tables:
            raise ValueError(f"choice names a table beyond the {tables} there are")
        if self.classes.numel() and int(self.classes.max()) >= CLASSES:
            raise ValueError(f"a class is not under {CLASSES}")
        if self.group is not None and self.group.numel():
            low, high = self.group.aminmax()
            if int(low) < 0 or int(high) >= self.shifts.shape[1]:
                raise ValueError("group names a shift that is not there")
