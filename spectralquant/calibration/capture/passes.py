"""How the model is run for one step: gradients to activations only, layers run again in the backward pass where asked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.decoder import attention_modules, text_decoder
from spectralquant.hooks.implementation import Switch, open_switches, opened_here
from spectralquant.hooks.wrappers import is_offloaded


@contextlib.contextmanager
def activation_gradients(model: nn.Module, backward: bool, *, recompute: bool = False) -> Iterator[None]:
    """Gradients flow to activations only: weights are frozen, the embedding output starts the graph.

    recompute: keep only the input of each decoder layer and run the layer again in the backward pass. A model that is
    offloaded is always run so: its weights come to the device twice, a layer at a time, and never pile up there.
    """
    if not backward:
        with torch.no_grad():
            yield
        return
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out.requires_grad_())
    offloaded = is_offloaded(model)
    again = recompute or offloaded
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, model, trained)
        stack.callback(handle.remove)
        stack.enter_context(torch.enable_grad())
        if again and can_recompute(model):
            stack.enter_context(_layers_run_again(model))
        elif offloaded:
            stack.enter_context(torch.autograd.graph.save_on_cpu())
        yield


def _restore(model: nn.Module, trained: list[str]) -> None:
    parameters = dict(model.named_parameters())  # offloading makes new parameters in every pass
    for name in trained:
        parameters[name].requires_grad_(True)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The modules whose own child is an attention module, in layer order."""
    owners = {id(child): module for module in text_decoder(model).modules() for child in module.children()}
    return [owners[id(attention)] for attention in attention_modules(model)]


def can_recompute(model: nn.Module) -> bool:
    """Whether each decoder layer is a function of its input alone: layers that share keys hand them on beside it."""
    config = getattr(text_decoder(model), "config", model.config)
    return not getattr(config, "num_kv_shared_layers", 0)


@contextlib.contextmanager
def _layers_run_again(model: nn.Module) -> Iterator[None]:
    """Decoder layers under activation checkpointing; transformers' own switch works in training mode only."""
    with contextlib.ExitStack() as stack:
        for layer in decoder_layers(model):
            own = layer.__dict__.get("forward")
            layer.forward = functools.partial(_run_twice, layer.forward)
            stack.callback(_put_back, layer, own)
        yield


def _run_twice(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    again = functools.partial(_run_as_here, open_switches(), forward)
    return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=False, **options)


def _run_as_here(switches: Sequence[Switch], forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with opened_here(switches):
        return forward(*args, **options)


def _put_back(layer: nn.Module, own: object) -> None:
    if own is None:
        del layer.forward
    else:
        layer.forward = own


def require_gradients(model: nn.Module) -> None:
    """Refuse a model past whose weights no gradient can flow.

    Raises:
        UnsupportedModelError: its weights were made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UnsupportedModelError(
            f"{type(model).__name__} was loaded in inference mode, so no gradient can flow through it. Load it outside "
            "torch.inference_mode(), or use --metric attention or energy (metric=)."
        )
