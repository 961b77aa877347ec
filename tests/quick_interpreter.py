"""Triton's interpreter with less to do at a call: it looks for the same builtins of `triton.language` every time."""

import functools
import inspect

import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def builtins_of(package) -> list[str]:
    """Asked first by the outermost call, where nothing is replaced yet."""
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def patch_builtin(package, builder, scope) -> None:
    """As `interpreter._patch_builtin`, which goes through all members."""
    for name in builtins_of(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


def install() -> None:
    """Nothing where a version of Triton has it otherwise."""
    if {"_patch_builtin", "_patch_attr"} <= set(vars(interpreter)):
        interpreter._patch_builtin = patch_builtin
