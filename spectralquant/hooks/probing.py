"""Running a model to learn about it: what its code cannot do is told as a reason, not as a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from spectralquant.errors import UnsupportedModelError

FOREIGN = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def architecture_errors(model: nn.Module, does: str, way_out: str) -> Iterator[None]:
    """Turn what a model's code raises inside into "NAME `does` (the error). `way_out`"; out of memory stays itself.

    Raises:
        UnsupportedModelError: the model's code raised something.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except FOREIGN as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnsupportedModelError(
            f"{type(model).__name__} {does} ({type(error).__name__}: {line}). {way_out}"
        ) from error
