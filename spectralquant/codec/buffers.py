"""Large tensors of numbers that are written at once.

A new tensor of many megabytes on a CPU costs a page fault for every 4 KB that is written to it. Arrays of numpy ask Linux for
pages of 2 MB from 4 MB on, which torch only does where an environment variable was set before it began.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def empty_floats(*shape: int, device: torch.device) -> Tensor:
    """Float32 `shape` of unspecified numbers."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=torch.float32, device=device)
    return torch.from_numpy(np.empty(shape, np.float32))
