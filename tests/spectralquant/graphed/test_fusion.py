"""Quicker functions while a step is captured: the same results, and the model as it was afterwards."""

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from spectralquant.graphed.fusion import fused

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def model_of(kind: str, activation: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act=activation)).eval()
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, hidden_activation=activation)).eval()


def gates(model: nn.Module) -> list[bool]:
    return ["forward" in vars(module) for module in model.modules() if hasattr(module, "gate_proj")]


@pytest.mark.parametrize(
    ("kind", "activation", "replaced"),
    [("llama", "silu", True), ("gemma", "gelu_pytorch_tanh", True), ("llama", "gelu", False), ("llama", "relu", False)],
)
def test_results_are_the_models_own(kind, activation, replaced):
    model = model_of(kind, activation)
    ids = torch.randint(0, 50, (2, 1), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own = model(ids).logits
        with fused(model):
            assert gates(model) == [replaced] * 2
            torch.testing.assert_close(model(ids).logits, own, rtol=1e-3, atol=1e-5)
        assert gates(model) == [False] * 2
        assert torch.equal(model(ids).logits, own)
