"""Whether the hot backend takes the place of vLLM's own attention: by an environment variable, as plugins are told things."""

from __future__ import annotations

import os

from spectralquant.errors import InputError

VARIABLE = "SPECTRALQUANT_HOT_PROFILE"
BACKEND = "spectralquant.integrations.vllm.hot.backend.HotBackend"


def hot_profile() -> str:
    """The profile's path, or nothing."""
    return os.environ.get(VARIABLE, "")


def select_hot_backend() -> None:
    """Put the hot backend in the place of the CPU build's attention, where a profile is named.

    Raises:
        InputError: on another device than a CPU.
    """
    if not hot_profile():
        return
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise InputError(
            f"{VARIABLE} is set, but the hot backend runs on the CPU build of vLLM alone. On a GPU its kernel reads rows of "
            "another layout (sqkernels.spectral_decode: bands of words a head, tables of pages shared by all layers), and "
            "there is no kernel for prompts over coded pages. Unset it, or use --kv-cache-dtype fp8."
        )
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
