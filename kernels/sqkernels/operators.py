"""`operator`: a function as a `torch.library` operator, which `torch.compile` and CUDA graphs see as one opaque call.

`torch.library.custom_op` does the same, but its first call imports the whole compiler (`torch._dynamo`), for which a new process
waits several seconds, and every call costs more than twice the host time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Operator:
    """An operator by its name, such as `sqkernels::spectral_decode`."""

    def __init__(self, name: str, function: Callable[..., Any], mutates_args: Sequence[str]) -> None:
        self.name = name
        schema = torch.library.infer_schema(function, mutates_args=tuple(mutates_args))
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, ("cpu", "cuda"), function)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that gives empty outputs of the right shapes."""
        torch.library.register_fake(self.name, function)
        return function


def operator(name: str, *, mutates_args: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Operator]:
    """Decorate a function of tensors, numbers and lists of them; `mutates_args` are the tensors that it writes."""
    return lambda function: Operator(name, function, mutates_args)
