"""`RotaryTables`: cos and sin of any positions for every layer, without running the model.

A two-token probe notes which rotary module, with which arguments, made the tables each layer received; later calls
replay those modules on other positions. Nothing depends on how an architecture names or shares them.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from spectralquant.attention.tap import AttentionCall, AttentionTap
from spectralquant.sources.geometry import CacheGeometry


class RotaryTables:
    """Tables per layer `[T, Dr]`, None for layers without RoPE. Iterating over layers shares equal tables."""

    def __init__(self, model: nn.Module, geometry: CacheGeometry) -> None:
        self.geometry = geometry
        self._model = weakref.ref(model)
        self._source: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]] | None] = [None] * geometry.layers
        outputs: list[tuple[Any, nn.Module, tuple[Any, ...], dict[str, Any]]] = []
        handles = [
            module.register_forward_hook(lambda m, a, k, o: outputs.append((o, m, a, k)), with_kwargs=True)
            for module in model.modules()
            if type(module).__name__.endswith("RotaryEmbedding")
        ]

        def observer(call: AttentionCall) -> None:
            for made, module, args, kwargs in () if call.shared else outputs:
                if call.cos is not None and made[0].data_ptr() == call.cos.data_ptr() and geometry.rotary[call.layer]:
                    self._source[call.layer] = (module, args, kwargs)

        try:
            ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
            with torch.no_grad(), AttentionTap(model, observer):
                model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        missing = [i for i in range(geometry.layers) if geometry.rotary[i] and self._source[i] is None]
        if missing:
            raise RuntimeError(f"no rotary module found for layers {missing}")

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """(cos, sin) float32 per layer for `positions: [T]`."""
        positions = positions.to(self._model().device)[None]
        made: dict[Any, tuple[Tensor, Tensor]] = {}
        cos: list[Tensor | None] = []
        sin: list[Tensor | None] = []
        for source in self._source:
            if source is None:
                cos.append(None)
                sin.append(None)
                continue
            module, args, kwargs = source
            key = (
                id(module),
                tuple(a for a in args if isinstance(a, str)),
                tuple((k, v) for k, v in kwargs.items() if isinstance(v, str)),
            )
            if key not in made:
                pair = module(
                    *[_moved(a, positions) for a in args], **{k: _moved(v, positions) for k, v in kwargs.items()}
                )
                made[key] = (pair[0][0].float(), pair[1][0].float())
            cos.append(made[key][0])
            sin.append(made[key][1])
        return tuple(cos), tuple(sin)


def _moved(argument: Any, positions: Tensor) -> Any:
    """The probe's argument for other positions: integer tensors were positions, the rest follows the model's device."""
    if not torch.is_tensor(argument):
        return argument
    return argument.to(positions.device) if argument.is_floating_point() else positions
