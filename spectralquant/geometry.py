"""`CacheGeometry`: the shape of a model's KV cache, and the sizes that all codecs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spectralquant.rotary_layout import RotaryLayout

BLOCK = 128
SINKS = 4
USUAL_CONTEXT = 2048  # tokens: where bytes of layers that read equally far back or not are weighed against each other


@dataclass(frozen=True)
class LayerGroup:
    """Layers that read equally far back: `window` tokens, the query's own included, or None for all."""

    layers: tuple[int, ...]
    window: int | None

    def first_read(self, tokens: int) -> int:
        """The oldest of `tokens` tokens that the next one can read; those before it are never read again."""
        return 0 if self.window is None else max(0, tokens - self.window + 1)

    def reads_beyond(self, recent: int) -> bool:
        """Whether more than `recent` tokens can be read: where all that is read stays exact, there is nothing to code."""
        return self.window is None or self.window > recent

    def held(self, tokens: int) -> int:
        """How many of `tokens` tokens can still be read: what transformers' own cache keeps of them."""
        return tokens - self.first_read(tokens)

    @property
    def held_share(self) -> float:
        """The share of a text's codes that are held at its end, of a text of `USUAL_CONTEXT` tokens."""
        return self.held(USUAL_CONTEXT) / USUAL_CONTEXT


@dataclass(frozen=True)
class CacheGeometry:
    """Shape letters of method.md: L layers that own keys and values, H query heads, Hk key/value heads, D head dimension.

    `rotary[l]` says whether layer l rotates its keys, `windows[l]` how many tokens a query of it reads at most (None: all;
    empty: all layers read all), `layout` how keys are rotated (a profile does not store it: the model is asked).
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: tuple[bool, ...]
    windows: tuple[int | None, ...] = ()
    layout: RotaryLayout = field(default=RotaryLayout(), compare=False)

    @property
    def group(self) -> int:
        """G = H / Hk, query heads per key/value head."""
        return self.heads // self.kv_heads

    @property
    def layer_width(self) -> int:
        """C = Hk·D, one layer's key (or value) width."""
        return self.kv_heads * self.head_dim

    @property
    def width(self) -> int:
        """P = L·C, key (or value) width over all layers."""
        return self.layers * self.layer_width

    @property
    def fp16_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in fp16, in all layers."""
        return 2 * 2 * self.width

    def fp16_bytes(self, tokens: int) -> int:
        """Bytes in fp16 of what transformers' own cache keeps of a sequence: a sliding layer, its window alone."""
        return sum(g.held(tokens) * len(g.layers) for g in self.groups) * 2 * 2 * self.layer_width

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """Layers by window, those that read everything first, then by falling window."""
        windows = self.windows or (None,) * self.layers
        kinds = sorted(set(windows), key=lambda w: (w is not None, -(w or 0)))
        return tuple(LayerGroup(tuple(i for i, w in enumerate(windows) if w == kind), kind) for kind in kinds)

    def coded_groups(self, recent: int) -> tuple[LayerGroup, ...]:
        """Groups worth coding where up to `recent` tokens stay exact; where that is none, all of them."""
        return tuple(group for group in self.groups if group.reads_beyond(recent)) or self.groups

    def part(self, layers: Sequence[int]) -> CacheGeometry:
        """The geometry of some of the layers, numbered from 0."""
        picked = (tuple(self.rotary[i] for i in layers), tuple(self.windows[i] for i in layers) if self.windows else ())
        return CacheGeometry(len(layers), self.heads, self.kv_heads, self.head_dim, *picked, self.layout)
