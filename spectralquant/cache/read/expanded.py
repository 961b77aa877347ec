"""Several queries a sequence, and sequences whose start is hidden, as rows of one query each, which is what kernels take.

Row (b, t) is query t of sequence b with the tokens that it may see: the pages from its first visible token on, and the
visible ones of the exact tokens, in front of those that are not. Codes are not copied.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sqkernels.common import PAGE, ExactTokens, RowPages


def expand(
    query: Tensor, pages: RowPages, exact: ExactTokens, coded: int, allowed: Tensor
) -> tuple[Tensor, RowPages, ExactTokens] | None:
    """Query `[B·T, H, D]`, pages and exact tokens of B·T rows; None where a mask hides coded tokens between visible ones.

    Args:
        query: `[B, H, T, D]`. coded: coded tokens of every sequence. allowed: boolean `[B or 1, 1, T, S]` over sinks, coded
            tokens and window.
    """
    batch, _, new, _ = query.shape
    sinks = exact.sink_keys.shape[2]
    seen = allowed[:, 0].expand(batch, -1, -1).flatten(0, 1)
    of_codes = seen[:, sinks : sinks + coded]
    hidden = (~of_codes).sum(-1)
    visible = torch.arange(coded, device=seen.device) >= hidden[:, None]
    if not bool((visible == of_codes).all()):
        return None
    owner = torch.arange(batch, device=seen.device).repeat_interleave(new)
    rows = query.transpose(1, 2).flatten(0, 1).contiguous()
    return (
        rows,
        _pages_from(pages, owner, hidden),
        _visible(exact, owner, torch.cat([seen[:, :sinks], seen[:, sinks + coded :]], 1)),
    )


def _pages_from(pages: RowPages, owner: Tensor, hidden: Tensor) -> RowPages:
    """Row r: the pages of sequence `owner[r]` without its first `hidden[r]` tokens."""
    skipped = pages.first[owner] + hidden
    count = pages.pages.shape[1]
    at = (torch.arange(count, device=owner.device) + (skipped // PAGE)[:, None]).clamp_max(count - 1)
    table = pages.pages[owner].gather(1, at)
    left = pages.tokens[owner] - hidden
    return replace(pages, pages=table, first=(skipped % PAGE).int(), tokens=left.int())


def _visible(exact: ExactTokens, owner: Tensor, seen: Tensor) -> ExactTokens:
    """Row r: the exact tokens of sequence `owner[r]` that are `seen: [R, E]`, as a window of that many."""
    order = torch.argsort(~seen, dim=1, stable=True)[:, None, :, None]
    both = ((exact.sink_keys, exact.window_keys), (exact.sink_values, exact.window_values))
    keys, values = (torch.cat(parts, dim=2)[owner] for parts in both)
    keys, values = (x.gather(2, order.expand_as(x)) for x in (keys, values))
    return ExactTokens(keys[:, :, :0], values[:, :, :0], keys, values, seen.sum(1).int())
