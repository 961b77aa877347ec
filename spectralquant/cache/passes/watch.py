"""`PassWatch`: where a model's forward passes begin and end, and whether each was given one of its caches.

Hooks are set while a cache of the model is alive and taken away with the last one, so that a model without a spectral
cache behaves as if this library were not there. A copied or pickled model gets hooks that do nothing.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectralquant.cache.passes.dropped import take_back
from spectralquant.cache.passes.frames import calls_module
from spectralquant.cache.passes.watched import WatchedCache
from spectralquant.cache.read import spectral_attention
from spectralquant.hooks.implementation import Switch, switched_here


class Hook:
    """A forward (pre-)hook that a copy or a pickle of the model does not take along, and that is never compiled."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __reduce__(self):
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything, returns None, needs no import of ours


@dataclass
class ForwardPass:
    """A forward pass under way. cache: the spectral cache it was given, if any; switch: open where that is read by
    `SpectralAttention`."""

    owner: nn.Module
    thread: int
    cache: weakref.ref[WatchedCache] | None
    switch: Switch | None

    @property
    def running(self) -> bool:
        """Whether the owner's call is still on its thread's stack: Ctrl-C ends a pass without a word to hooks."""
        return calls_module(self.thread, self.owner)

    def close(self) -> None:
        """Give the model its attention back."""
        if self.switch is not None:
            self.switch.__exit__()


class PassWatch:
    """Hooks on `modules` (the model and the ones inside it that make masks), open passes, and who asked for them."""

    def __init__(self, modules: Sequence[nn.Module], configs: Sequence[Any]) -> None:
        self._modules = [weakref.ref(m) for m in modules]
        self._configs = tuple(configs)
        self._caches: weakref.WeakSet[WatchedCache] = weakref.WeakSet()
        self._alive = 0
        self._open: list[ForwardPass] = []
        self._handles: list[Any] = []
        self._lock = threading.RLock()

    def attach(self, cache: WatchedCache, extra: Callable[[], list[Any]]) -> None:
        """Watch for a cache; `extra` sets hooks of the caller's, which live as long."""
        with self._lock:
            self._caches.add(cache)
            self._alive += 1
            weakref.finalize(cache, self._released).atexit = False
            if not self._handles:
                self._handles += extra()
                for module in (ref() for ref in self._modules):
                    self._handles.append(module.register_forward_pre_hook(Hook(self._begin), with_kwargs=True))
                    self._handles.append(
                        module.register_forward_hook(Hook(self._end), with_kwargs=True, always_call=True)
                    )

    def _released(self) -> None:
        with self._lock:
            self._alive -= 1
            if self._alive:
                return
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            for stale in self._open:  # a pass that runs holds its cache: these were interrupted
                stale.close()
            self._open.clear()

    def of(self, cache: WatchedCache) -> ForwardPass | None:
        """The pass that was given `cache` and has not ended (it may have been interrupted)."""
        return next((p for p in self._open if p.cache is not None and p.cache() is cache), None)

    def here(self) -> ForwardPass | None:
        """The pass that runs on this thread."""
        thread = threading.get_ident()
        return next((p for p in reversed(self._open) if p.thread == thread), None)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._clear_interrupted()
        outer = self.here()
        values = (*args, *kwargs.values())
        cache = next((v for v in values if isinstance(v, WatchedCache) and v in self._caches), None)
        if outer is not None and (outer.cache is not None or cache is None):
            return None
        back: dict[str, Any] = {}
        if cache is None and len(self._caches):
            cache, back = take_back(module, self._caches, kwargs)
        self._enter(module, cache)
        return (args, {**kwargs, **back}) if back else None

    def _enter(self, module: nn.Module, cache: WatchedCache | None) -> None:
        switch = None
        if cache is not None:
            if cache.reads_spectral and not any(map(switched_here, self._configs)):
                switch = Switch(self._configs, spectral_attention.IMPLEMENTATION).__enter__()
            cache.begin_pass(switch is not None)
        ref = None if cache is None else weakref.ref(cache)
        self._open.append(ForwardPass(module, threading.get_ident(), ref, switch))

    @torch.no_grad()
    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        current = self.here()
        if current is None or current.owner is not module:
            return
        self._open.remove(current)
        current.close()
        cache = None if current.cache is None else current.cache()
        if cache is not None:
            cache.end_pass(output)

    def _clear_interrupted(self) -> None:
        thread = threading.get_ident()
        for stale in [p for p in self._open if p.thread == thread and not p.running]:
            self._open.remove(stale)
            stale.close()
            cache = None if stale.cache is None else stale.cache()
            if cache is not None:
                cache.abort_forward()
