"""`Switch`: whose attention function runs, the model's own or one of ours.

transformers looks an attention function up by a name in the model's configuration, for every layer of every pass. A
switch puts another name there for as long as it is open and the model's own back at the end. Only the configurations
of the text decoder change: a vision tower keeps its own. Several switches may be open at once, also from several threads.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spectralquant.errors import UnsupportedModelError


@dataclass
class _Held:
    """A configuration under a switch. It is held, so that its `id` stays its own."""

    config: Any
    own: str
    names: list[str] = field(default_factory=list)


_held: dict[int, _Held] = {}
_lock = threading.RLock()
_thread = threading.local()


class Switch:
    """Context manager: the layers of `configs` run attention `name`; other threads' passes stay as they were."""

    def __init__(self, configs: Sequence[Any], name: str) -> None:
        self.configs, self.name, self._open, self._local = tuple(configs), name, False, _open_here()

    def __enter__(self) -> Switch:
        with _lock:
            for config in self.configs:
                held = _held.setdefault(id(config), _Held(config, config._attn_implementation))
                held.names.append(self.name)
                _set(config, self.name)
            self._open, self._local = True, _open_here()
            self._local.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        with _lock:
            if not self._open:
                return
            self._open = False
            if self in self._local:
                self._local.remove(self)
            for config in self.configs:
                held = _held[id(config)]
                held.names.reverse()
                held.names.remove(self.name)
                held.names.reverse()
                _set(config, held.names[-1] if held.names else held.own)
                if not held.names:
                    del _held[id(config)]


def _open_here() -> list[Switch]:
    if not hasattr(_thread, "open"):
        _thread.open = []
    return _thread.open


def _set(config: Any, name: str) -> None:
    """Set the name on this configuration alone: the public property would also set it on vision and audio parts."""
    if hasattr(config, "_attn_implementation_internal"):
        config._attn_implementation_internal = name
    else:
        config._attn_implementation = name


def switched_here(config: Any) -> bool:
    """Whether a switch that this thread opened covers the configuration."""
    return any(config is c for switch in _open_here() for c in switch.configs)


def open_switches() -> list[Switch]:
    """The switches that this thread has open."""
    return list(_open_here())


@contextlib.contextmanager
def opened_here(switches: Sequence[Switch]) -> Iterator[None]:
    """Another thread's switches count as this one's: autograd runs layers again in threads of its own."""
    local, before = _open_here(), open_switches()
    local.extend(switch for switch in switches if switch not in before)
    try:
        yield
    finally:
        local[:] = before


def own_implementation(config: Any) -> str:
    """The attention implementation that the model has when no switch is open."""
    held = _held.get(id(config))
    return (config._attn_implementation if held is None else held.own) or "eager"


def decoder_configs(model: nn.Module, modules: Sequence[nn.Module]) -> list[Any]:
    """The configurations that decide how attention `modules` of a model run: theirs, and those masks are made from.

    Raises:
        UnsupportedModelError: the model does not use transformers' attention interface.
    """
    around = [
        m for m in model.modules() if isinstance(m, PreTrainedModel) and any(a is modules[-1] for a in m.modules())
    ]
    can_switch = getattr(type(around[-1]), "_can_set_attn_implementation", None) if around else None
    if not around or not hasattr(modules[-1], "config") or (can_switch is not None and not can_switch()):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not use transformers' attention interface, so its keys and values cannot be "
            "observed. Use a model class that supports `set_attn_implementation`."
        )
    found = [m.config for m in modules] + [m.config for m in around]
    return list({id(config): config for config in found}.values())


def custom_function(config: Any) -> Callable[..., Any] | None:
    """The attention function of the model's own implementation where a user registered it, else None."""
    name = own_implementation(config)
    found = ALL_ATTENTION_FUNCTIONS.get(name) if name != "eager" else None
    ours = found is None or getattr(found, "__module__", "").startswith("transformers.") or "/" in name
    return None if ours else found


def attention_function(module: nn.Module) -> tuple[str, Callable[..., Any]]:
    """("eager", "sdpa" or "custom", function): the model's own attention, for masks as `make_mask` gives them.

    Flash and flex attention take masks that no cache of ours can read; SDPA computes the same, or the model's eager
    function where it refuses SDPA (learnt sinks, soft-capped scores).
    """
    name = own_implementation(module.config)
    custom = custom_function(module.config)
    if custom is not None:
        return "custom", custom
    space = vars(sys.modules[type(module).__module__])
    if name == "sdpa" or (name != "eager" and _supports_sdpa(space)):
        return "sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"]
    if "eager_attention_forward" not in space:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no eager attention function to fall back on. Load the model with "
            'attn_implementation="sdpa".'
        )
    return "eager", space["eager_attention_forward"]


def _supports_sdpa(space: dict[str, Any]) -> bool:
    kinds = [v for v in space.values() if isinstance(v, type) and issubclass(v, PreTrainedModel)]
    return all(getattr(kind, "_supports_sdpa", False) for kind in kinds if kind is not PreTrainedModel)


def make_mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | Any | None:
    """The mask function of every switch: boolean `[B, 1, T, S]`, None where plain causal, or what a user's function takes.

    A pass of another thread, which no switch covers, gets its own implementation's mask.
    """
    own = own_implementation(config) if config is not None else "sdpa"
    if config is not None and (custom_function(config) is not None or not switched_here(config)):
        function = ALL_MASK_ATTENTION_FUNCTIONS[own] if own in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys() else None
        return None if function is None else function(*args, config=config, **kwargs)
    window = kwargs.get("local_size")
    if window is not None and kwargs.get("q_length") == 1 and kwargs.get("kv_length", window + 1) <= window:
        kwargs["local_size"] = None  # one query may read its whole window: a mask would hide nothing but padding
    return sdpa_mask(*args, config=config, **kwargs)


def run_own(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the module would have run by itself, arguments and result untouched."""
    name = own_implementation(module.config)
    space = vars(sys.modules[type(module).__module__])
    return ALL_ATTENTION_FUNCTIONS.get_interface(name, space.get("eager_attention_forward"))(module, *args, **kwargs)
