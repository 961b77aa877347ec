"""Whether the hot backend takes the place of vLLM's own attention: by an environment variable, as plugins are told things."""

from __future__ import annotations

from typing import Any

from spectralquant.errors import InputError, ProfileError
from spectralquant.integrations.vllm.hot.variable import VARIABLE, hot_profile

PACKAGE = "spectralquant.integrations.vllm.hot"
BACKEND = f"{PACKAGE}.backend.HotBackend"
GPU_BACKEND = f"{PACKAGE}.gpu_backend.HotGpuBackend"
GPU_VERSION = "0.26."


def select_hot_backend() -> None:
    """Where a profile is named: put the hot backend in the place of the CPU build's attention; on a GPU, offer it as CUSTOM.

    Raises:
        InputError: the profile is missing or has no codes for pages; on another device, or a version of vLLM that the GPU's backend
            does not know.
    """
    if not hot_profile():
        return
    _check_profile(hot_profile())
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    if current_platform.is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, BACKEND)
    elif current_platform.is_cuda():
        register_backend(AttentionBackendEnum.CUSTOM, GPU_BACKEND)
        _size_pages()
    else:
        raise InputError(f"{VARIABLE} is set, but the hot backend runs on CPUs and on CUDA GPUs alone. Unset it.")


def _check_profile(path: str) -> None:
    from spectralquant.integrations.vllm.hot.profile import pages_profile

    try:
        pages_profile(path)
    except ProfileError as error:
        raise InputError(f"{VARIABLE} is set to {path}, which hot pages cannot be made of: {error}") from error


def _size_pages() -> None:
    """Let layers of the hot backend have pages as long as codes need: vLLM 0.26 has no hook for that, so their method is wrapped.

    Raises:
        InputError: another version of vLLM.
    """
    import vllm
    from vllm.model_executor.layers.attention.attention import Attention

    if not vllm.__version__.startswith(GPU_VERSION):
        raise InputError(
            f"{VARIABLE} is set, but on a GPU the hot backend knows vLLM {GPU_VERSION}x alone, not {vllm.__version__}. Unset it, or "
            "install vllm==0.26.0."
        )
    plain = Attention.get_kv_cache_spec
    if getattr(plain, "sizes_hot_pages", False):
        return

    def get_kv_cache_spec(self: Any, vllm_config: Any) -> Any:
        spec = plain(self, vllm_config)
        if spec is None:
            return None
        if self.attn_backend.full_cls_name() != tuple(GPU_BACKEND.rsplit(".", 1)):
            raise InputError(
                f"{VARIABLE} is set, but layer {self.layer_name} has the backend {self.attn_backend.get_name()}. Start the engine with "
                "--attention-backend CUSTOM, or unset the variable."
            )
        from spectralquant.integrations.vllm.hot.gpu_backend import hot_spec

        return hot_spec(self, spec)

    get_kv_cache_spec.sizes_hot_pages = True  # type: ignore[attr-defined]
    Attention.get_kv_cache_spec = get_kv_cache_spec
