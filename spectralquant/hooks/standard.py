"""Whether a model's attention is the softmax attention that compressed keys and values are read by."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.implementation import attention_function
from spectralquant.hooks.softmax import probabilities
from spectralquant.hooks.tap import AttentionCall

TOLERANCE = 0.05


def require_softmax(model: nn.Module, calls: Sequence[AttentionCall]) -> None:
    """Compare the model's eager function with ours on observed calls; calls that are always left to it pass.

    SDPA is known. An eager function is the model's own code, and may do what no option tells of.

    Raises:
        UnsupportedModelError: it computes something else.
    """
    for call in calls:
        if call.left_to_model() is not None or attention_function(call.module)[0] != "eager":
            continue
        if call.key.shape != call.value.shape:
            continue
        own = call.run().float()
        group = call.query.shape[1] // call.key.shape[1]
        key, value = (x.float().repeat_interleave(group, dim=1) for x in (call.key, call.value))
        scores = call.query.float() @ key.transpose(2, 3) * call.scaling
        ours = (probabilities(scores, call.allowed(), call.options) @ value).transpose(1, 2)
        change = float((ours - own).norm() / own.norm().clamp_min(1e-30))
        if not change <= TOLERANCE:
            raise UnsupportedModelError(
                f"The attention of layer {call.layer} of {type(model).__name__} is not softmax attention as this library "
                f"knows it (outputs differ by {change:.0%}), so compressed keys and values would be read wrongly. Use a "
                "model with softmax attention."
            )
