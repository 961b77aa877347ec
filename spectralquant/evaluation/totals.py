"""`StreamTotals`: what one method did to one window, and what it holds of it in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from spectralquant.geometry import CacheGeometry, LayerGroup
from spectralquant.methods.base import EvictingMethod


@dataclass(frozen=True)
class CodedRange:
    """Tokens start … stop that a group of layers holds as one code."""

    group: LayerGroup
    start: int
    stop: int
    nbytes: int
    by_token: bool = False

    def held(self, oldest: int) -> int:
        """Bytes that are held while tokens from `oldest` on can be read: all, where no token can be let go alone."""
        readable = self.stop - max(self.start, oldest)
        return -(-self.nbytes * readable // (self.stop - self.start)) if self.by_token else self.nbytes


@dataclass(frozen=True)
class KeptRange:
    """What an evicting method holds of tokens start … of a group, to the newest: bool `[L, Hk, n]`."""

    group: LayerGroup
    start: int
    kept: Tensor
    method: EvictingMethod


@dataclass
class StreamTotals:
    """What one method did to one window. Sums over scored tokens; nats; bytes; seconds.

    scores: sums of `evaluation.scores` by name. coded_tokens, exact_tokens: of the layers that read furthest back. Bytes are
    those held when the text (or prompt) has been read: fp16_bytes by transformers' own cache in float16 (of sliding layers
    their window alone), coded_fp16_bytes its share for tokens that went through the method (of an evicting one, all), coded_bytes
    what it takes for those, tokens that nothing will read again let go. open_bytes: what is kept about recent tokens beside
    their keys and values.
    """

    tokens: int = 0
    nll: float = 0.0
    exact_nll: float = 0.0
    kl: float = 0.0
    top1: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    coded_tokens: int = 0
    exact_tokens: int = 0
    fp16_bytes: int = 0
    coded_fp16_bytes: int = 0
    coded_bytes: int = 0
    open_bytes: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    change: float = 0.0
    answered: bool = True
    exact_answered: bool = True
    codes: list[CodedRange] = field(default_factory=list, repr=False)
    keeps: dict[LayerGroup, KeptRange] = field(default_factory=dict, repr=False)

    def close(self, geometry: CacheGeometry, total: int, coded_to: int, sums: int) -> None:
        """Count what is held of a text of `total` tokens.

        coded_to: tokens from there on are recent. sums: bytes of attention sums kept for a recent token in each layer.
        """
        per_layer = geometry.fp16_bytes_per_token // geometry.layers
        self.fp16_bytes = geometry.fp16_bytes(total)
        for code in self.codes:
            oldest = code.group.first_read(total)
            readable = code.stop - max(code.start, oldest)
            if readable > 0:
                self.coded_bytes += code.held(oldest)
                self.coded_fp16_bytes += readable * len(code.group.layers) * per_layer
        self.open_bytes += sums * (total - coded_to) * len({i for c in self.codes for i in c.group.layers})
        for held in self.keeps.values():
            oldest = held.group.first_read(total)
            kept = held.kept[..., max(0, oldest - held.start) :]
            self.coded_bytes += held.method.held_bytes(kept, geometry)
            self.coded_fp16_bytes += kept.shape[-1] * len(held.group.layers) * per_layer
        self.codes, self.keeps = [], {}
