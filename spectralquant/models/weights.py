"""A model's weights as it computes with them: fetched where they are offloaded, gathered where they are sharded, with
the active low-rank adapters added as merging them would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.wrappers import has, modules, offload_hooks


@dataclass(frozen=True)
class Weight:
    """One parameter: its name in the plain model, its shape, and `read()`, which may fetch or add something."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def named_weights(model: nn.Module) -> list[Weight]:
    """Every parameter that the model computes with, sorted by name; wrappers and adapters leave no trace in names."""
    stored = _offloaded(model)
    layers = [(f"{name}." if name else "", m) for name, m in model.named_modules() if hasattr(m, "base_layer")]
    skip, deltas, renamed = _adapters(model, layers)
    found: dict[str, Weight] = {}
    for full, parameter in model.named_parameters():
        if any(full.startswith(prefix) for prefix in skip):
            continue
        name = renamed(full)
        found[name] = Weight(name, tuple(parameter.shape), _reader(full, parameter, stored, deltas.get(full, [])))
    for name in _tied(model):
        found.pop(name, None)
    return sorted(found.values(), key=lambda w: w.name)


def embedding_weight(model: nn.Module) -> Tensor:
    """The input embedding `[V, width]`, also where it is offloaded."""
    module = model.get_input_embeddings()
    return module_weight(module, "weight")


def module_weight(module: nn.Module, name: str = "weight") -> Tensor:
    """A parameter of one module, also where it is offloaded or sharded; on the device where the module computes."""
    parameter = getattr(module, name)
    value = _plain(parameter) if not parameter.is_meta else _offloaded(module)[name]()
    devices = [h.execution_device for h in offload_hooks(module)]
    return value.to(devices[0]) if devices else value


def state_of_adapters(model: nn.Module) -> tuple[Any, ...]:
    """What decides, beside the parameters themselves, which adapters a model computes with."""
    return tuple(
        (
            tuple(getattr(m, "active_adapters", ()) or ()),
            tuple(getattr(m, "merged_adapters", ()) or ()),
            bool(getattr(m, "disable_adapters", False)),
        )
        for m in modules(model)
        if has(m, "base_layer") or has(m, "modules_to_save")
    )


def _plain(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()


def _reader(
    full: str, parameter: Tensor, stored: dict[str, Callable[[], Tensor]], deltas: list[Callable[[], Tensor]]
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        if parameter.is_meta:
            if full not in stored:
                raise UnsupportedModelError(f"The weight {full} is on the meta device and nothing holds its values.")
            value = stored[full]()
        else:
            value = _plain(parameter)
        for delta in deltas:
            value = value.add(delta().to(value.device)).to(value.dtype)
        return value

    return read


def _offloaded(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Readers of the parameters that accelerate's hooks hold, by full name."""
    found: dict[str, Callable[[], Tensor]] = {}
    for prefix, module in model.named_modules():
        for hook in offload_hooks(module):
            if getattr(hook, "weights_map", None) is None:
                continue
            for name, _ in module.named_parameters(recurse=bool(getattr(hook, "place_submodules", False))):
                full = f"{prefix}.{name}" if prefix else name
                found[full] = lambda held=hook.weights_map, key=name: held[key].detach()
    return found


def _tied(model: nn.Module) -> Iterator[str]:
    """Names that are one parameter with another, which offloading lists twice."""
    tied = getattr(model, "all_tied_weights_keys", None)
    present = dict(model.named_parameters(remove_duplicate=False))
    for name, source in (tied or {}).items():
        if name in present and source in present and present[name].is_meta:
            yield name


def _adapters(model: nn.Module, layers: list[tuple[str, Any]]):
    """Prefixes of parameters to leave out, additions to others, and the renaming to plain names."""
    skip: list[str] = []
    deltas: dict[str, list[Callable[[], Tensor]]] = {}
    saved: dict[str, str] = {}
    for prefix, layer in layers:
        active = [a for a in (getattr(layer, "active_adapters", ()) or ()) if _has(layer, a)]
        merged = list(getattr(layer, "merged_adapters", ()) or ())
        off = bool(getattr(layer, "disable_adapters", False))
        foldable = hasattr(layer, "get_delta_weight") and not any(
            getattr(layer, "use_dora", {}).get(a) or getattr(layer, "lora_bias", {}).get(a) for a in active
        )
        if not off and not merged and active and not foldable:
            continue
        names = (*getattr(layer, "adapter_layer_names", ()), *getattr(layer, "other_param_names", ()))
        skip += [f"{prefix}{name}." for name in names]
        if not off and not merged:
            adding = [lambda layer=layer, a=a: layer.get_delta_weight(a).detach() for a in active]
            deltas[f"{prefix}base_layer.weight"] = adding
    for name, module in model.named_modules():
        if type(module).__name__ != "ModulesToSaveWrapper":
            continue
        active = [a for a in module.active_adapters if a in module.modules_to_save]
        kept = f"modules_to_save.{active[-1]}." if active and not module.disable_adapters else "original_module."
        for child in ("original_module.", *(f"modules_to_save.{a}." for a in module.modules_to_save)):
            if child != kept:
                skip.append(f"{name}.{child}")
        saved[f"{name}.{kept}"] = f"{name}."

    def renamed(full: str) -> str:
        for prefix, plain in saved.items():
            if full.startswith(prefix):
                full = plain + full[len(prefix) :]
        return full.replace(".base_layer.", ".")

    return skip, deltas, renamed


def _has(layer: Any, adapter: str) -> bool:
    names = getattr(layer, "adapter_layer_names", ())
    return any(adapter in getattr(layer, name, ()) for name in names)
