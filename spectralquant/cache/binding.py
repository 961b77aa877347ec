"""`ModelBinding`: what a cache must learn from a model's forward pass and `update` does not tell it.

Token ids (for the token predictor), position ids (to take RoPE out of keys), and where a forward pass begins and ends
(see `passes`). One binding serves all caches of a model; its hooks are there while one of them is.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spectralquant.cache.passes.watch import ForwardPass, Hook, PassWatch
from spectralquant.cache.passes.watched import WatchedCache
from spectralquant.cache.tokens.seen import SeenTokens
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.decoder import attention_modules, rotary_modules, text_decoder
from spectralquant.hooks.implementation import decoder_configs
from spectralquant.hooks.rotary_tables import RotaryTables
from spectralquant.hooks.wrappers import model_device, usable_model
from spectralquant.models.identity import weights_sha256
from spectralquant.models.probe import probe_geometry
from spectralquant.surroundings import own_run

_bindings: weakref.WeakKeyDictionary[nn.Module, ModelBinding] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class ModelBinding:
    """Hooks on one model. Each thread sees the ids and positions of its own forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._seen = threading.local()
        self.geometry: CacheGeometry = probe_geometry(model)
        self.tables = RotaryTables(model, self.geometry)
        self._decoder = weakref.ref(text_decoder(model))
        self._rotary = [weakref.ref(m) for m in rotary_modules(model)]
        attention = attention_modules(model)
        makers = [m for m in model.modules() if isinstance(m, PreTrainedModel) and attention[-1] in set(m.modules())]
        outermost = [] if model in makers else [model]
        self._passes = PassWatch([*outermost, *makers], decoder_configs(model, attention))

    def attach(self, cache: WatchedCache) -> None:
        """Watch the model's passes for as long as the cache lives."""
        self._passes.attach(cache, self._set_hooks)

    def pass_of(self, cache: WatchedCache) -> ForwardPass | None:
        """The pass that was given the cache and has not ended."""
        return self._passes.of(cache)

    def _set_hooks(self) -> list[Any]:
        model, decoder = self.model, self._decoder()
        return [
            model.register_forward_pre_hook(Hook(self._forget)),
            decoder.register_forward_hook(Hook(self._forget), always_call=True),
            decoder.register_forward_pre_hook(Hook(self._note_replaced), with_kwargs=True),
            model.get_input_embeddings().register_forward_pre_hook(Hook(self._note_ids)),
            model.get_input_embeddings().register_forward_hook(Hook(self._note_embedded)),
            *(
                module.register_forward_pre_hook(Hook(self._note_positions), with_kwargs=True)
                for module in filter(None, (ref() for ref in self._rotary))
            ),
        ]

    @property
    def model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise RuntimeError("the cache's model is gone; keep the model as long as its caches are used")
        return model

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return model_device(self.model)

    @property
    def weights_sha256(self) -> str:
        """Hash of the model's weights, which snapshots name (see `models.identity`)."""
        return weights_sha256(self.model)

    def take(self) -> SeenTokens:
        """What was seen of the forward pass under way, once."""
        ids, positions = getattr(self._seen, "ids", None), getattr(self._seen, "positions", None)
        self._forget(self.model)
        return SeenTokens(ids, positions, self.tables.frequencies())

    @torch.compiler.disable
    def _forget(self, module: nn.Module, *_: Any) -> None:
        self._seen.ids = self._seen.positions = self._seen.embedded = None

    @torch.compiler.disable
    def _note_ids(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and torch.is_tensor(args[0]):
            self._seen.ids = args[0]

    @torch.compiler.disable
    def _note_embedded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._seen.embedded = output if torch.is_tensor(output) else None

    @torch.compiler.disable
    @torch.no_grad()
    def _note_replaced(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A wrapper puts images in the place of some embeddings: the ids there say nothing of what is read (−1)."""
        ids, embedded = getattr(self._seen, "ids", None), getattr(self._seen, "embedded", None)
        given = kwargs.get("inputs_embeds")
        if ids is None or embedded is None or not torch.is_tensor(given) or given is embedded:
            return
        if given.shape != embedded.shape:
            self._seen.ids = None
            return
        self._seen.ids = ids.masked_fill((given != embedded).any(-1), -1)

    @torch.compiler.disable
    def _note_positions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if torch.is_tensor(value) and not value.is_floating_point() and value.dim() in (2, 3):
                self._seen.positions = value


def bind(model: nn.Module) -> ModelBinding:
    """The model's binding, made on first use; wrappers share that of the model inside.

    Raises:
        UnsupportedModelError: see `usable_model` and `probe_geometry`.
    """
    model = usable_model(model)
    with _lock:
        if model not in _bindings:
            with own_run(model):
                _bindings[model] = ModelBinding(model)
        return _bindings[model]


def bound_model(weights: str, windows: tuple[int | None, ...], likely: Sequence[str] = ()) -> nn.Module | None:
    """A model of this process with these weights and windows that a cache has been made for (or `bind` was called on).

    Where there are several, in other number formats or on other devices, the one with most of the facts `likely`
    (`"torch.bfloat16"`, `"cuda:0"`).
    """
    fitting = [m for m, b in list(_bindings.items()) if b.geometry.windows == windows and b.weights_sha256 == weights]
    return max(fitting, key=lambda m: sum(fact in likely for fact in model_facts(m)), default=None)


def model_facts(model: nn.Module) -> tuple[str, str]:
    """Number format and device of a model's first weights."""
    first = next(model.parameters())
    return str(first.dtype), str(first.device)
