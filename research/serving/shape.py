"""The configuration of a large Llama shape; an engine draws its own weights (`load_format="dummy"`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectralquant.models.shapes import parse_shape

POSITIONS = 65_536


def save_shape(folder: Path, spec: str) -> None:
    """`config.json` in `folder`."""
    from transformers import AutoConfig

    s = parse_shape(spec)
    whole = {"hidden_size": s.hidden, "intermediate_size": s.intermediate, "vocab_size": s.vocab}
    AutoConfig.for_model("llama", **cache_sizes(spec), **whole, dtype="bfloat16").save_pretrained(folder)


def cache_sizes(spec: str) -> dict[str, Any]:
    """What of the configuration says how large keys and values are."""
    s = parse_shape(spec)
    sizes = {"num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads}
    return sizes | {"head_dim": s.head_dim, "max_position_embeddings": POSITIONS, "architectures": ["LlamaForCausalLM"]}
