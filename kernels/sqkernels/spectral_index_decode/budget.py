"""How many coded tokens a head may read, and each cell's part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqkernels.common.layout import PAGE
from sqkernels.common.pages import RowPages

CELL, LEVELS, BINS = 1024, 32, 256
Budget = int | float | Tensor
BY_TENSOR, BY_SHARE, BY_COUNT = 0, 1, 2


def check_budget(budget: Budget, pages: RowPages) -> None:
    """Raise ValueError for a negative number, a share over 1, or a tensor of another shape or dtype."""
    shape = (pages.batch, pages.matrices.kv_heads)
    if isinstance(budget, Tensor):
        if budget.dtype != torch.int32 or budget.shape not in (shape, shape[1:]):
            raise ValueError(f"budget must be int32 {list(shape)} or {list(shape[1:])}")
    elif isinstance(budget, float):
        if not 0.0 <= budget <= 1.0:
            raise ValueError(f"budget={budget} is a share of the coded tokens and must lie between 0.0 and 1.0")
    elif budget < 0:
        raise ValueError(f"budget={budget} tokens is negative")


@dataclass(frozen=True)
class BudgetArguments:
    """A budget as the gather takes it. by_head: int32 `[B, Hk]`, or empty; kind: which of by_head, share and count holds.
    expected: what the host knows of a head's selected tokens if every page is full (0 for a tensor)."""

    by_head: Tensor
    share: float
    kind: int
    count: int
    expected: int

    @classmethod
    def of(cls, budget: Budget, pages: RowPages) -> BudgetArguments:
        """A checked budget."""
        slots = pages.pages.shape[1] * PAGE
        if isinstance(budget, Tensor):
            return cls(budget.expand(pages.batch, -1).contiguous(), 0.0, BY_TENSOR, 0, 0)
        none = pages.tokens.new_empty(0)
        if isinstance(budget, float):
            return cls(none, budget, BY_SHARE, 0, min(slots, int(budget * slots)))
        return cls(none, 0.0, BY_COUNT, budget, min(slots, budget))

    @property
    def numbers(self) -> list[int]:
        """What is neither a tensor nor a float."""
        return [self.kind, self.count, self.expected]

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the gather."""
        numbers = {"share": self.share, "count": self.count, "expected": self.expected, "BUDGET_KIND": self.kind}
        return {"BUDGET": self.by_head} | numbers


def budget_tokens(budget: Budget, pages: RowPages) -> Tensor:
    """Int64 `[B, Hk]`, at most the coded tokens."""
    tokens = pages.tokens.long()[:, None].expand(-1, pages.matrices.kv_heads)
    if isinstance(budget, float):
        wanted = (tokens.float() * torch.tensor(budget)).ceil().long()
    else:
        wanted = torch.as_tensor(budget, device=tokens.device).long()
    return torch.minimum(wanted.expand_as(tokens), tokens)


def cell_budgets(levels: Tensor, budget: Tensor) -> Tensor:
    """Tokens to select in every cell: int64 `[…, cells]`, which add up to `budget: […]` (or all tokens, if fewer).

    levels: int64 `[…, cells, 32]`, tokens of a cell by level of their score. Levels above the one at which the budget
    ends are taken whole, of that one every cell gives in proportion to what it has.
    """
    total = levels.sum(-2)
    above = total.flip(-1).cumsum(-1).flip(-1)
    whole = (above > budget[..., None]).sum(-1, keepdim=True)
    level = torch.arange(LEVELS, device=levels.device)
    remaining = (budget - (total * (level >= whole)).sum(-1))[..., None]
    edges = (levels * (level == whole - 1)[..., None, :]).sum(-1)
    after = edges.cumsum(-1)
    part = remaining * after // after[..., -1:].clamp_min(1) - remaining * (after - edges) // after[..., -1:].clamp_min(
        1
    )
    return (levels * (level >= whole)[..., None, :]).sum(-1) + part * (whole > 0)
