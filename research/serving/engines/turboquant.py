"""vLLM's turboquant where FlashAttention 2 was not built.

It keeps the first and last two layers in bfloat16 for FlashAttention 2 and reads prompts with it. Without it, all layers are coded and prompts
are read by FlashAttention 3; nothing of its codes or of how they are read by decode steps is changed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

NOTE = "all layers coded, prompts read by FlashAttention 3: this build of vLLM lacks FlashAttention 2"


def lacks_flash_attention_2() -> bool:
    """Whether this vLLM was built without it; vLLM is not imported."""
    spec = find_spec("vllm")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return not any(list(Path(f).glob("vllm_flash_attn/_vllm_fa2_C*")) for f in folders)


def without_flash_attention_2() -> None:
    """Let turboquant do without it, in this process."""
    from vllm.model_executor.layers.quantization.turboquant.config import TurboQuantConfig
    from vllm.v1.attention.backends import turboquant_attn

    TurboQuantConfig.get_boundary_skip_layers = staticmethod(lambda model_config, n=2: [])
    turboquant_attn.get_flash_attn_version = lambda *_, **__: 3
