"""What calibration captures is what the model computes, for every supported architecture."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ARCHITECTURES, random_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from spectralquant.calibration.capture import step as step_module
from spectralquant.calibration.capture.loss import summed_cross_entropy
from spectralquant.calibration.capture.step import capture_step
from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.decoder import attention_modules
from spectralquant.hooks.tap import AttentionTap
from spectralquant.models.probe import probe_geometry
from spectralquant.rotary import Rotation, apply_rope, undo_rope


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return random_model(request.param)


def ids(count=40):
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(3))


def reference_keys(model, tokens):
    """Keys before RoPE by hooks on k_norm, k_proj or the fused qkv_proj, as each model names them."""
    kept, handles = {}, []
    for module in attention_modules(model):
        target = getattr(module, "k_norm", None) or getattr(module, "k_proj", None) or module.qkv_proj
        handles.append(target.register_forward_hook(lambda m, i, o, layer=module.layer_idx: kept.__setitem__(layer, o)))
    with torch.no_grad():
        model(input_ids=tokens[None])
    for handle in handles:
        handle.remove()
    g = probe_geometry(model)
    rows = []
    for layer in range(g.layers):
        out = kept[layer]
        if out.shape[-1] == (g.heads + 2 * g.kv_heads) * g.head_dim:
            out = out[..., g.heads * g.head_dim : (g.heads + g.kv_heads) * g.head_dim]
        if out.dim() == 4 and out.shape[1] == g.kv_heads:
            out = out.transpose(1, 2)
        rows.append(out.reshape(len(tokens), g.kv_heads, g.head_dim))
    return torch.stack(rows, dim=1)


def test_keys_before_rope_equal_the_projection(model):
    step = capture_step(model, probe_geometry(model), ids(), backward=False)
    assert torch.allclose(step.keys, reference_keys(model, ids()), atol=1e-4, rtol=1e-4)


def test_observing_does_not_change_the_model(model):
    with torch.no_grad():
        before = model(input_ids=ids()[None]).logits
        with AttentionTap(model, lambda call: None):
            seen = model(input_ids=ids()[None]).logits
    assert torch.allclose(before, seen, atol=1e-4)
    assert model.config._attn_implementation != "spectralquant_tap"


def test_gradients_leave_weights_untouched_and_match_a_perturbation(model):
    geometry, tokens = probe_geometry(model), ids()
    flags = [p.requires_grad for p in model.parameters()]
    step = capture_step(model, geometry, tokens)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    direction = torch.randn_like(step.value_grads[5, 1])
    losses = [perturbed_loss(model, tokens, 5, 1, sign * 1e-2 * direction) for sign in (1, -1)]
    slope = (losses[0] - losses[1]) / 2e-2
    assert slope == pytest.approx((step.value_grads[5, 1] * direction).sum().item(), rel=0.05, abs=2e-3)


def perturbed_loss(model, tokens, token, layer, change):
    def observer(call):
        if call.layer == layer:
            call.value = call.value.clone()
            call.value[0, :, token] += change

    with torch.no_grad(), AttentionTap(model, observer):
        logits = model(input_ids=tokens[None]).logits[0, :-1].double()
    return functional.cross_entropy(logits, tokens[1:], reduction="sum").item()


def test_far_gradients_keep_the_output_and_drop_near_reads(model):
    geometry, tokens = probe_geometry(model), ids(48)
    plain, far = capture_step(model, geometry, tokens), capture_step(model, geometry, tokens, far_block=8)
    assert far.loss == pytest.approx(plain.loss, rel=1e-4)
    assert torch.allclose(far.keys, plain.keys, atol=1e-3)
    assert float(far.value_grads[-16:].abs().max()) == 0.0
    assert float(far.value_grads[:16].abs().max()) > 0.0


def backward_elsewhere(loss):
    """The backward pass in another thread, as autograd does it for CUDA."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same thread", "another thread"])
def test_layers_that_run_again_give_the_same_gradients(model, elsewhere, monkeypatch):
    geometry, tokens = probe_geometry(model), ids(48)
    kept = capture_step(model, geometry, tokens, far_block=8, received_block=8)
    if elsewhere:
        loss_of = step_module.summed_cross_entropy

        class Loss:
            def __init__(self, value):
                self.backward, self.item = lambda: backward_elsewhere(value), value.item

        monkeypatch.setattr(step_module, "summed_cross_entropy", lambda *given: Loss(loss_of(*given)))
    again = capture_step(model, geometry, tokens, far_block=8, received_block=8, recompute=True)
    for name in ("keys", "values", "key_grads", "value_grads", "rotated_grads", "received", "entropy"):
        assert torch.allclose(getattr(again, name), getattr(kept, name), atol=1e-5, rtol=1e-4), name
    assert not any("forward" in layer.__dict__ for layer in model.modules())
    assert len(again.rotations) == geometry.layers


def test_the_loss_in_rows_is_cross_entropy_and_so_is_its_gradient():
    logits = torch.randn(600, 50, requires_grad=True)
    targets = torch.randint(0, 50, (600,))
    targets[-1] = -100
    summed_cross_entropy(logits, targets).backward()
    other = logits.detach().clone().requires_grad_()
    loss = functional.cross_entropy(other, targets, reduction="sum")
    loss.backward()
    assert torch.allclose(summed_cross_entropy(logits.detach(), targets), loss)
    assert torch.allclose(logits.grad, other.grad, atol=1e-6)


def test_received_attention_counts_own_and_next_block_only(small):
    tokens = ids(24)
    step = capture_step(small.model, small.geometry, tokens, backward=False, received_block=8)
    small.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = small.model(input_ids=tokens[None], output_attentions=True).attentions
    small.model.set_attn_implementation("sdpa")
    dense = torch.stack([w[0] for w in weights])
    expected = torch.zeros_like(step.received)
    for token in range(24):
        last = min(24, (token // 8 + 2) * 8)
        expected[:, :, token] = dense[:, :, token + 1 : last, token].sum(2)
    assert torch.allclose(step.received, expected, atol=1e-5)


@pytest.mark.parametrize("pairs", ["halves", "neighbours"])
def test_rope_round_trip_with_partial_and_scaled_tables(pairs):
    x = torch.randn(3, 7, 16)
    angle = torch.rand(7, 4)
    r = Rotation(1.3 * angle.cos(), 1.3 * angle.sin(), pairs)
    assert torch.allclose(undo_rope(apply_rope(x, r), r), x, atol=1e-5)


REFUSED = {
    "mamba": ("state-space", {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512}),
    "deepseek_v3": (
        "multi-head latent attention",
        {
            "num_hidden_layers": 1,
            "hidden_size": 64,
            "vocab_size": 512,
            "num_attention_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 2,
        },
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unsupported_architectures_are_refused_with_the_reason(kind):
    reason, options = REFUSED[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    with pytest.raises(UnsupportedModelError, match=reason):
        probe_geometry(model)
