"""The transformers model inside what users wrap around it, and where it computes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.surroundings import own_run

COMPILED = "_orig_mod"
INNER = ("module", "pretrained_model")
_running: ContextVar[nn.Module | None] = ContextVar("_running", default=None)  # the model of the `runs_model` around


def usable_model(model: nn.Module, *, spread: bool = False) -> nn.Module:
    """The transformers model inside `torch.compile`, DataParallel, DDP, DeepSpeed and PEFT wrappers.

    spread: its layers may compute on several devices.

    Raises:
        UnsupportedModelError: there is none inside, its weights are sharded or absent, a prompt is learnt in front of
            it, or its layers compute on several devices.
    """
    if model is _running.get():
        return model
    while True:
        _refuse_sharded([model])
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            _refuse_learnt_prompt(model)
            inner = model.get_base_model()
        else:
            children = getattr(model, "_modules", {})
            names = (COMPILED,) if hasattr(model, "set_attn_implementation") else (COMPILED, *INNER)
            inner = next((children[name] for name in names if isinstance(children.get(name), nn.Module)), None)
            if inner is None:
                break
        model = inner
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not a transformers model (it has no config and attention implementation). "
            "Pass the PreTrainedModel that is inside it."
        )
    every = modules(model)
    _refuse_sharded(every)
    absent = [name for name, p in named_parameters(model) if p.is_meta and not _offloaded_holder(model, name)]
    if absent:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no weights ({absent[0]} is on the meta device and nothing was offloaded). "
            "Load the model with from_pretrained first."
        )
    devices = sorted({str(d) for d in _attention_devices(every)})
    if len(devices) > 1 and not spread:
        raise UnsupportedModelError(
            f"{type(model).__name__} is spread over {', '.join(devices)}: its keys and values lie on several devices, and a "
            "cache's block spans all layers. It can be calibrated so; for a cache put it on one device (device_map={'': 0}); "
            "what does not fit may be offloaded to the CPU or a disk."
        )
    return model


def runs_model(function: Callable[..., Any] | None = None, *, spread: bool = False) -> Callable[..., Any]:
    """Decorate `function(model, …)`: it gets the model inside all wrappers, and its surroundings are the library's own.

    spread: it takes models whose layers compute on several devices, too.
    """
    if function is None:
        return functools.partial(runs_model, spread=spread)

    @functools.wraps(function)
    def inside(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model = usable_model(model, spread=spread)
        before = _running.set(model)
        try:
            with own_run(model):
                return function(model, *args, **kwargs)
        finally:
            _running.reset(before)

    return inside


def for_usable_model(method: Callable[..., None]) -> Callable[..., None]:
    """Decorate `method(self, model, …)`: it gets the model inside all wrappers, which is looked through only once meanwhile."""

    @functools.wraps(method)
    def inside(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        model = usable_model(model)
        before = _running.set(model)
        try:
            method(self, model, *args, **kwargs)
        finally:
            _running.reset(before)

    return inside


def model_device(model: nn.Module) -> torch.device:
    """Where the model computes; weights that are offloaded lie elsewhere."""
    embedding = model.get_input_embeddings()
    return _execution_device(embedding) or model.device


def offload_hooks(module: nn.Module) -> list[Any]:
    """accelerate's hooks on one module that hold weights for it."""
    hook = getattr(module, "_hf_hook", None)
    return [h for h in getattr(hook, "hooks", (hook,)) if getattr(h, "execution_device", None) is not None]


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate fetches some of the weights when they are used."""
    return any(getattr(h, "offload", False) for m in model.modules() for h in offload_hooks(m))


def computing_device(module: nn.Module) -> torch.device | None:
    """Where a module computes: by accelerate's hooks on it or on what is inside, else where its first weight lies."""
    inside = (
        _execution_device(part) for part in module.modules() if next(part.parameters(recurse=False), None) is not None
    )
    return _execution_device(module) or next((device for device in inside if device is not None), None)


def _execution_device(module: nn.Module) -> torch.device | None:
    for hook in offload_hooks(module):
        device = hook.execution_device
        return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    weight = next(module.parameters(), None)
    return None if weight is None or weight.is_meta else weight.device


def _attention_devices(every: Sequence[nn.Module]) -> list[torch.device]:
    layers = [m for m in every if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]
    projections = [
        next((p for p in m.modules() if next(p.parameters(recurse=False), None) is not None), m) for m in layers
    ]
    found = [_execution_device(m) for m in layers] + [_execution_device(m) for m in projections]
    return [d for d in found if d is not None]


def _offloaded_holder(model: nn.Module, name: str) -> bool:
    parts = name.split(".")[:-1]
    paths = [".".join(parts[:i]) for i in range(len(parts), -1, -1)]
    return any(getattr(h, "offload", False) for path in paths for h in offload_hooks(model.get_submodule(path)))


def _refuse_sharded(every: Sequence[nn.Module]) -> None:
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in every):
        raise UnsupportedModelError(
            "The model's weights are sharded by FullyShardedDataParallel, which only runs it as a whole. Load the model "
            "without it for calibration and caches, or shard with fully_shard (FSDP2)."
        )


def _refuse_learnt_prompt(model: nn.Module) -> None:
    for name, config in model.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"The adapter {name!r} ({type(config).__name__}) puts a learnt prompt in front of every input, which fills "
                "a cache of its own. Use the base model, or an adapter that changes weights (LoRA)."
            )


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `list(model.named_modules())`, without recursion: a cache walks its model's hundreds of modules several times before the
    first token."""
    out: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        out.append((name, module))
        before = name + "." if name else ""
        inner = [(before + key, child) for key, child in module._modules.items() if child is not None]
        waiting.extend(reversed(inner))
    return out


def modules(model: nn.Module) -> list[nn.Module]:
    """As `list(model.modules())`."""
    return [module for _, module in named_modules(model)]


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As `model.named_parameters()`."""
    seen: set[int] = set()
    for name, module in named_modules(model):
        before = name + "." if name else ""
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield before + key, parameter


def has(module: nn.Module, name: str) -> bool:
    """`hasattr` for what a module holds as attribute or submodule, without the price of an attribute that is not there."""
    return name in module.__dict__ or name in module._modules or hasattr(type(module), name)
