"""Next-token cross-entropy whose memory is one copy of the logits' gradient, and nothing in float32 but a few rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 256


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        grad = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), ROWS):
            rows, right = logits[start : start + ROWS].float(), targets[start : start + ROWS]
            log_p = functional.log_softmax(rows, dim=-1)
            total += functional.nll_loss(log_p, right, reduction="sum", ignore_index=-100)
            if grad is not None:
                part = log_p.exp_()
                known = right >= 0
                part[known, right[known]] -= 1
                part *= known[:, None]
                grad[start : start + ROWS] = part.to(grad.dtype)
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad.mul_(outer[0].to(grad.dtype)), None


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over rows in float32: logits `[T, V]`, targets int64 `[T]` (−100: not counted).

    The gradient is made in the forward pass, some rows at a time, and rounded once to the kind of the logits, as
    autograd would do it. It can be taken once. Source: the fused losses of Liger Kernel (arXiv 2410.10989, section 3.2).
    """
    return _SummedCrossEntropy.apply(logits, targets)
