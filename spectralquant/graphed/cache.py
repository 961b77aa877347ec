"""`StaticSpectralCache`: a transformers cache of fixed size, whose steps can be captured as CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from spectralquant.codec.hot.linear import INDEX_RANK, row_matrices
from spectralquant.errors import InputError
from spectralquant.geometry import CacheGeometry
from spectralquant.graphed.coded_layers import CodedLayers
from spectralquant.graphed.lengths import Lengths
from spectralquant.graphed.sliding_layers import SlidingLayers
from spectralquant.profile.model import CalibrationProfile
from sqkernels.common import RowMatrices

IMPLEMENTATION = "spectralquant_static"


class StaticLayer(CacheLayerMixin):
    """What transformers asks of one layer; the tokens are in `part`, where it is number `index`.

    As a step's keys it stands for all tokens of the layer: `static_attention` reads them in place.
    """

    is_croppable = False
    is_compileable = False

    def __init__(self, part: CodedLayers | SlidingLayers, index: int, is_sliding: bool) -> None:
        super().__init__()
        self.part, self.index, self.is_sliding = part, index, is_sliding
        self.padding: Sequence[int] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: buffers are there from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object):
        """Take new tokens `[B, Hk, T, D]`: a prompt's (they are given back) or one more of every sequence."""
        if self.padding is None:
            self.part.append(self.index, key_states, value_states)
            return self, self
        self.part.prefill(self.index, key_states, value_states, self.padding)
        return key_states, value_states

    def get_seq_length(self) -> int:
        return max(self.part.lengths.host) if self.padding is None else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return self.part.lengths.max_tokens


class StaticSpectralCache(Cache):
    """Buffers for `batch` sequences of at most `max_tokens` tokens; `GraphedModel` fills and reads them.

    Layers that read everything hold hot codes, four sinks and a window; layers that slide hold their window, exact.
    """

    def __init__(
        self,
        model: nn.Module,
        geometry: CacheGeometry,
        matrices: RowMatrices,
        *,
        batch: int,
        max_tokens: int,
        window: int,
        backend: str,
        select: Sequence[float | int | None],
    ) -> None:
        self.lengths = Lengths(batch, max_tokens, window, matrices.device)
        self.parts: list[CodedLayers | SlidingLayers] = []
        layers: dict[int, StaticLayer] = {}
        for kind in geometry.groups:
            part = geometry.part(kind.layers)
            if kind.window is None:
                self.parts.append(CodedLayers(part, matrices, self.lengths, model.dtype, backend, select))
            else:
                self.parts.append(SlidingLayers(part, kind.window, self.lengths, model.dtype))
            layers |= {n: StaticLayer(self.parts[-1], i, kind.window is not None) for i, n in enumerate(kind.layers)}
        super().__init__(layers=[layers[i] for i in range(geometry.layers)])

    def begin_prompt(self, real: Sequence[int], tokens: int) -> None:
        """The pass that comes reads a prompt: `real[b]` tokens of sequence b after `tokens` − `real[b]` of padding."""
        self.lengths.start(real)
        for layer in self.layers:
            layer.padding = [tokens - n for n in real]

    def end_prompt(self) -> None:
        """Passes that come read one token a sequence."""
        for layer in self.layers:
            layer.padding = None

    def compress(self) -> None:
        """Code the oldest block of sequences without room, on the device."""
        for part in self.parts:
            part.compress()
        self.lengths.compressed()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, at the largest number of tokens."""
        return sum(part.nbytes for part in self.parts)


def static_matrices(
    profile: CalibrationProfile, geometry: CacheGeometry, device: torch.device, indexed: bool
) -> RowMatrices:
    """The kernels' matrices of the layers that read everything, with an index where steps select by one.

    Raises:
        InputError: there is no such layer, or the profile has no hot tier for them.
    """
    everything = next((kind.layers for kind in geometry.groups if kind.window is None), None)
    if everything is None:
        raise InputError(
            "Every layer of this model slides over a window, so there is little to compress and nothing to graph. "
            "Use SpectralCache, or transformers' StaticCache."
        )
    tensors = profile.tier_of("hot", everything) if "hot" in profile.tiers else None
    if tensors is None:
        raise InputError(
            f"The profile has no hot tier for layers {everything[0]} to {everything[-1]} (it has "
            f"{', '.join(profile.tiers)}). Calibrate one: sq calibrate --tier hot."
        )
    part = geometry.part(everything)
    return row_matrices(tensors, part, range(part.layers), device, INDEX_RANK if indexed else 0)


def static_attention(
    module: nn.Module,
    query: Tensor,
    key: StaticLayer,
    value: StaticLayer,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Attention `[B, 1, H, D]` of one query a sequence `[B, H, 1, D]` over a static layer."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for name, why in (("softcap", "soft-caps its scores"), ("s_aux", "has learnt attention sinks")):
        if options.get(name) is not None:
            raise InputError(f"This model {why}, which the kernels do not compute. Use SpectralCache.")
    return key.part.attend(key.index, query[:, :, 0].contiguous(), scale)[:, None], None


def no_mask(*args: object, **kwargs: object) -> None:
    """Steps need no mask: counters say which tokens there are."""
    return


AttentionInterface.register(IMPLEMENTATION, static_attention)
AttentionMaskInterface.register(IMPLEMENTATION, no_mask)
