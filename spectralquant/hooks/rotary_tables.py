"""`RotaryTables`: how each layer's keys are rotated at any place, without running the model.

A two-token probe notes which rotary module, with which arguments, made the tables each layer received; later calls
replay private copies of those modules, so nothing depends on how an architecture names or shares them, and no other
thread's work touches the model. Modules that choose their frequencies by the length of the sequence (longrope, dynamic
NTK) are frozen in the copy, and every token is rotated with the frequencies that the model used for it.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spectralquant.errors import UnsupportedModelError
from spectralquant.hooks.decoder import longest_context, rotary_modules
from spectralquant.hooks.tap import AttentionCall, AttentionTap
from spectralquant.hooks.wrappers import model_device
from spectralquant.rotary import Rotation

if TYPE_CHECKING:
    from spectralquant.geometry import CacheGeometry

Rotations = tuple[Rotation | None, ...]
CHECKED = 4


@dataclass(frozen=True)
class Places:
    """Where T tokens of one sequence stand.

    positions: int64 `[A, T]`, one row an axis (vision models number text, height and width apart).
    frequencies: float32 `[R, F]`, the states a dynamic model's rotary modules were in; which: int64 `[T]`, each token's row.
    key: equal for equal places of one cache.
    """

    positions: Tensor
    frequencies: Tensor | None = None
    which: Tensor | None = None
    key: Hashable = None

    def part(self, tokens: slice | Tensor) -> Places:
        """Some of the tokens."""
        which = None if self.which is None else self.which[tokens]
        return Places(self.positions[:, tokens], self.frequencies, which)


class RotaryTables:
    """Rotations of every layer, None for layers without RoPE; layers with equal tables share one.

    Raises:
        UnsupportedModelError: tables that come from nowhere known, or depend on more than positions and frequencies.
    """

    def __init__(self, model: nn.Module, geometry: CacheGeometry) -> None:
        self.geometry = geometry
        self._model = weakref.ref(model)
        self._lock = threading.Lock()
        self._sources = _noted_sources(model, geometry)
        modules = {id(s.module): s for s in self._sources if s is not None}
        self._replicas = {key: _Replica(s, model_device(model)) for key, s in modules.items()}
        self.dynamic = any(r.dynamic for r in self._replicas.values())
        far = 10 * (longest_context(model) or 100_000)
        for replica in self._replicas.values():
            replica.require_function_of_position(far, type(model).__name__, model_device(model))
        self._sources = [None if s is None else s.without_module() for s in self._sources]

    def frequencies(self) -> Tensor | None:
        """The state `[F]` that the model's rotary modules are in now; None where it never changes."""
        return torch.cat([r.state(r.live()) for r in self._dynamic()]) if self.dynamic else None

    def frequencies_of_prompt(self, tokens: int) -> Tensor | None:
        """The state `[F]` that a prompt of that many tokens puts a fresh model in; None where it never changes."""
        if not self.dynamic:
            return None
        return torch.cat([r.state(r.after(tokens, model_device(self._model()))) for r in self._dynamic()])

    def buffers(self) -> Iterator[Tensor]:
        """What the rotary modules hold, among it their frequencies."""
        for replica in self._replicas.values():
            for name in replica.buffers:
                yield replica.frozen.get_buffer(name).detach()

    def prompt(self, tokens: int) -> Places:
        """Places 0 … tokens − 1 of a prompt that a fresh model reads in one pass."""
        state = self.frequencies_of_prompt(tokens)
        positions = torch.arange(tokens)[None]
        if state is None:
            return Places(positions)
        return Places(positions, state[None], torch.zeros(tokens, dtype=torch.int64))

    def forget_lengths(self) -> None:
        """Put the model's rotary modules into their first state, as a pass over one token does."""
        for replica in self._dynamic():
            replica.call(replica.live(), torch.zeros(1, 1, dtype=torch.int64), model_device(self._model()))

    @torch.no_grad()
    def __call__(self, places: Places) -> Rotations:
        """The rotation of every layer at `places`."""
        if not self.dynamic or places.frequencies is None:
            if self.dynamic:
                raise ValueError("this model's rotations depend on frequencies, and none were given")
            return self._tables(places.positions, None)
        used = places.which.unique().tolist()
        if len(used) == 1:
            return self._tables(places.positions, places.frequencies[used[0]])
        index = [torch.nonzero(places.which == row).squeeze(1) for row in used]
        parts = [
            self._tables(places.positions[:, i], places.frequencies[row]) for row, i in zip(used, index, strict=True)
        ]
        order = torch.cat(index).argsort()
        shared: dict[tuple[int, ...], Rotation] = {}
        out: list[Rotation | None] = []
        for layer in zip(*parts, strict=True):
            key = tuple(map(id, layer))
            if layer[0] is not None and key not in shared:
                cos, sin = (torch.cat([getattr(r, name) for r in layer])[order] for name in ("cos", "sin"))
                shared[key] = Rotation(cos, sin, layer[0].pairs)
            out.append(None if layer[0] is None else shared[key])
        return tuple(out)

    def _tables(self, positions: Tensor, state: Tensor | None) -> Rotations:
        device = model_device(self._model())
        made: dict[Any, Rotation] = {}
        out: list[Rotation | None] = []
        with self._lock:
            if state is not None:
                at = 0
                for replica in self._dynamic():
                    replica.load(state[at : at + replica.size])
                    at += replica.size
            for source in self._sources:
                if source is not None and source.key not in made:
                    replica = self._replicas[source.key[0]]
                    pair = replica.call(replica.frozen, positions, device, source)
                    made[source.key] = Rotation.of(*pair, self.geometry.layout)
                out.append(None if source is None else made[source.key])
        return tuple(out)

    def _dynamic(self) -> list[_Replica]:
        return [r for r in self._replicas.values() if r.dynamic]


def future_rotations(model: nn.Module, geometry: CacheGeometry) -> Callable[[int, int], Rotations]:
    """Every layer's rotations at positions start … stop that the model has not come to yet."""
    tables = RotaryTables(model, geometry)
    return lambda start, stop: tables(tables.prompt(stop).part(slice(start, stop)))


@dataclass(frozen=True)
class _Source:
    """A call of a rotary module that made some layer's tables; key: equal for layers that share them."""

    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: tuple[Any, ...]

    def without_module(self) -> _Source:
        """So that nothing here keeps the model alive."""
        return _Source(None, self.args, self.kwargs, self.key)


class _Replica:
    """Private copies of one rotary module: `frozen` keeps whatever frequencies it is given."""

    def __init__(self, source: _Source, device: torch.device) -> None:
        self.source = source.without_module()
        self.live = weakref.ref(source.module)
        self.fresh = _plain_copy(source.module).to(device)
        self.frozen = _plain_copy(source.module).to(device)
        self.dynamic = _changes_frequencies(source.module)
        if self.dynamic:
            kinds = self.frozen.rope_type
            self.frozen.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
        self.buffers = sorted(
            n for n, b in self.frozen.named_buffers() if b.is_floating_point() and "original" not in n
        )
        self.numbers = sorted(n for n, value in vars(self.frozen).items() if isinstance(value, float))
        self.size = sum(self.frozen.get_buffer(n).numel() for n in self.buffers) + len(self.numbers)

    def state(self, module: nn.Module) -> Tensor:
        """What a module's tables depend on beside positions, float32 `[size]` on the CPU."""
        parts = [module.get_buffer(n).detach().flatten().float().cpu() for n in self.buffers]
        return torch.cat([*parts, torch.tensor([float(getattr(module, n)) for n in self.numbers], dtype=torch.float32)])

    def load(self, state: Tensor) -> None:
        """Put the frozen copy into a state."""
        at = 0
        for name in self.buffers:
            held = self.frozen.get_buffer(name)
            held.copy_(state[at : at + held.numel()].view_as(held))
            at += held.numel()
        for name, value in zip(self.numbers, state[at:].tolist(), strict=True):
            setattr(self.frozen, name, value)

    @torch.no_grad()
    def after(self, tokens: int, device: torch.device) -> nn.Module:
        """A fresh copy after a prompt of that many tokens."""
        module = copy.deepcopy(self.fresh)
        for last in (0, tokens - 1):
            self.call(module, torch.tensor([[last]]), device)
        return module

    @torch.no_grad()
    def call(
        self, module: nn.Module, positions: Tensor, device: torch.device, source: _Source | None = None
    ) -> tuple[Tensor, Tensor]:
        """cos and sin `[T, n]` of `positions: [A, T]`."""
        source = source or self.source
        moved = [_moved(a, positions, device) for a in source.args]
        cos, sin = module(*moved, **{k: _moved(v, positions, device) for k, v in source.kwargs.items()})
        return _of_one_sequence(cos), _of_one_sequence(sin)

    def require_function_of_position(self, far: int, name: str, device: torch.device) -> None:
        """Refuse tables that a later position changes."""
        few = torch.arange(CHECKED)[None]
        first = self.call(self.frozen, few, device)
        longer = self.call(self.frozen, torch.cat([few, torch.tensor([[far]])], dim=1), device)
        again = self.call(self.frozen, few, device)
        if not all(
            torch.equal(a, b[:CHECKED]) and torch.equal(a, c) for a, b, c in zip(first, longer, again, strict=True)
        ):
            raise UnsupportedModelError(
                f"{name}'s rotary embedding ({type(self.fresh).__name__}) turns equal positions differently in longer "
                "sequences, in a way this library does not know (it knows longrope and dynamic NTK of transformers). "
                "Keys coded early could not be read later. Use another rope type."
            )


def _changes_frequencies(module: nn.Module) -> bool:
    """Whether transformers' `dynamic_rope_update` changes this module's frequencies in the forward pass."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(k, str) and ("dynamic" in k or k == "longrope") for k in kinds)


def _plain_copy(module: nn.Module) -> nn.Module:
    """A copy without hooks."""
    made = copy.deepcopy(module)
    vars(made).pop("forward", None)
    for hooks in (made._forward_hooks, made._forward_pre_hooks, made._backward_hooks):
        hooks.clear()
    return made


def _noted_sources(model: nn.Module, geometry: CacheGeometry) -> list[_Source | None]:
    """Which call made each layer's tables."""
    found: list[_Source | None] = [None] * geometry.layers
    outputs: list[tuple[Any, nn.Module, tuple[Any, ...], dict[str, Any]]] = []
    handles = [
        module.register_forward_hook(lambda m, a, k, o: outputs.append((o, m, a, k)), with_kwargs=True)
        for module in rotary_modules(model)
    ]

    def observer(call: AttentionCall) -> None:
        if call.shared or call.cos is None or not geometry.rotary[call.layer]:
            return
        for made, module, args, kwargs in outputs:
            if isinstance(made, tuple) and torch.is_tensor(made[0]) and _is_table(call.cos, made[0]):
                words = tuple(a for a in args if isinstance(a, str))
                words += tuple((k, v) for k, v in kwargs.items() if isinstance(v, str))
                found[call.layer] = _Source(module, args, kwargs, (id(module), *words))

    try:
        ids = torch.zeros(1, 2, dtype=torch.int64, device=model_device(model))
        with torch.no_grad(), AttentionTap(model, observer):
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    missing = [i for i in range(geometry.layers) if geometry.rotary[i] and found[i] is None]
    if missing:
        raise UnsupportedModelError(
            f"{type(model).__name__} makes the rotary tables of layers {missing} in no module of its own, so keys cannot "
            "be rotated again after decoding. Use a model whose rotary embedding is a module, as in transformers."
        )
    return found


def _is_table(received: Tensor, made: Tensor) -> bool:
    """Whether a layer received this table: the tensor itself, or its copy on the layer's own device."""
    if received.device == made.device:
        return received.data_ptr() == made.data_ptr()
    return torch.equal(received, made.to(received.device))


def _moved(argument: Any, positions: Tensor, device: torch.device) -> Any:
    """The probe's argument for other positions: integer tensors were positions, the rest follows the model's device."""
    if not torch.is_tensor(argument):
        return argument
    if argument.is_floating_point():
        return argument.to(device)
    positions = positions.to(device)
    if argument.dim() == 3:  # axes, batch, tokens
        return positions[:, None].expand(argument.shape[0], 1, -1)
    return positions if argument.dim() == 2 else positions[0]


def _of_one_sequence(table: Tensor) -> Tensor:
    return table[0] if table.dim() == 3 else table
