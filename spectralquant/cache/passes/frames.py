"""What runs on this thread: a module's forward, transformers' `generate`."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn

MODULE_CALL = nn.Module._call_impl.__code__


def inside_a_module() -> bool:
    """Whether a module's forward runs on this thread."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not MODULE_CALL:
        frame = frame.f_back
    return frame is not None


def calls_module(thread: int, module: nn.Module) -> bool:
    """Whether a call of `module` is on a thread's stack."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is MODULE_CALL and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back
    return False


def generate_frame() -> FrameType | None:
    """The innermost `generate` of transformers on this thread's stack."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "generate" and frame.f_globals.get("__name__", "").startswith("transformers."):
            return frame
        frame = frame.f_back
    return None
