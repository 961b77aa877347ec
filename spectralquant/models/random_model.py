"""`random:SHAPE`: a Llama with random weights at a named shape, and a tokenizer of bytes.

Speed and memory of caches do not depend on what a model has learnt; such a model needs no download.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from spectralquant.errors import InputError
from spectralquant.models.shapes import ModelShape, parse_shape
from spectralquant.models.spread import made_in_place, spread_places

PREFIX = "random:"
POSITIONS = 131_072


def random_model(spec: str, dtype: torch.dtype, device: torch.device, *, spread: bool = False) -> tuple[nn.Module, Any]:
    """Model and tokenizer of `random:SHAPE`, always the same weights. spread: its layers over all GPUs.

    Raises:
        InputError: there is no such shape.
    """
    shape = parse_shape(spec.removeprefix(PREFIX))
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        with torch.device("meta" if spread else device):
            model = LlamaForCausalLM(random_config(shape))
        for parameter in model.parameters():  # not `.to(dtype)`, which would round the rotary frequencies as well
            parameter.data = parameter.data.to(dtype)
        if spread:
            rotary = LlamaRotaryEmbedding(model.config)
            model = made_in_place(model, spread_places(model, dtype), {"model.rotary_emb": rotary})
    finally:
        torch.random.set_rng_state(generator)
    return model, ByT5Tokenizer()


def random_config(shape: ModelShape) -> LlamaConfig:
    """Llama's configuration at a shape.

    Raises:
        InputError: a hidden size that its heads do not divide.
    """
    if shape.hidden % shape.heads:
        raise InputError(
            f"A random model's hidden size ({shape.hidden}) must be a multiple of its {shape.heads} heads."
        )
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
    )
