"""`svd_reconstruct_attention`: attention of one new token over any tier, by whatever reads it best."""

from __future__ import annotations

from torch import Tensor, nn

from spectralquant.cache.read.fused import attend_rows, refusal
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.codec.packet import SpectralPacket
from spectralquant.errors import InputError
from spectralquant.hooks.tap import AttentionCall
from spectralquant.profile.model import CalibrationProfile
from spectralquant.surroundings import own_arithmetic
from sqkernels.common import ExactTokens, RowPages
from sqkernels.dense_decode import dense_decode
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import spectral_index_decode


@own_arithmetic()
def svd_reconstruct_attention(
    query: Tensor,
    source: SpectralCache | SpectralPacket | RowPages,
    layer: int = 0,
    *,
    exact: ExactTokens | None = None,
    select: float | int | None = None,
    scaling: float | None = None,
    model: nn.Module | None = None,
    profile: CalibrationProfile | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention `[B, H, D]` of one new token a sequence over one layer of a compressed cache.

    Hot codes as rows are read in place (`spectral_decode`, with `select` `spectral_index_decode`); tokens of other tiers,
    and of a packet, are reconstructed and read by `dense_decode`.

    Args:
        query: `[B, H, D]`, after RoPE. source: a cache, a packet (with the `model` and `profile` it was made with), or
            pages of codes (with their `exact` sinks and window). layer: of a cache or packet.
        select: share or number of the coded tokens to read; pages need an index.
        scaling: default D^(−1/2). backend: auto (Triton on CUDA, else torch), triton or reference.

    Raises:
        InputError: a packet without model and profile, pages without exact tokens, or a selection where nothing is read in
            place. ValueError: shapes disagree. RuntimeError: Triton was asked for and cannot run here.
    """
    if isinstance(source, RowPages):
        if exact is None:
            raise InputError("Pages hold no sinks and no window: give them as exact=ExactTokens(…).")
        if select is None:
            return spectral_decode(query, source, exact, scaling, backend=backend)
        return spectral_index_decode(query, source, exact, select, scaling, backend=backend)
    if isinstance(source, SpectralPacket):
        if model is None or profile is None:
            raise InputError("A packet is read with the model and the profile it was made with: model=…, profile=….")
        source = SpectralCache.unpack(model, profile, source)
    if not 0 <= layer < len(source.layers):
        raise InputError(f"layer={layer} is outside 0 to {len(source.layers) - 1}.")
    view = source.view(layer, 0)
    segments = view.segments()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(None, layer, query[:, :, None], view, view, None, scale, None, None, {})
    if view.rows is not None and refusal(call, segments, None) is None:
        return attend_rows(call, segments, None, view.rows, select or view.select)[:, 0]
    if select is not None:
        raise InputError("select= needs hot codes as rows, which this cache does not hold (a GPU, and kernels='auto').")
    return dense_decode(query, *(x.contiguous() for x in view.dense()), scale, backend=backend)
