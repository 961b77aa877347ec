"""The kernels as one `torch.library` operator, so that `torch.compile` and CUDA graphs see one opaque call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sqkernels.common.attention import AttentionCall, AttentionTensors, Partials, Preparation, reduce
from sqkernels.common.launch import LayoutArguments
from sqkernels.common.pages import ExactTokens, RowPages
from sqkernels.common.runtime import assembly, multiprocessors, overlap
from sqkernels.operators import operator
from sqkernels.spectral_decode.settings import choose_splits, settings


def decode(query: Tensor, pages: RowPages, exact: ExactTokens, scaling: float) -> Tensor:
    """See `api.spectral_decode`; checked arguments."""
    layout = LayoutArguments.of(pages.matrices)
    splits = choose_splits(pages.batch * layout.heads, pages.pages.shape[1], multiprocessors(query.device))
    tensors = AttentionTensors.of(query, pages, exact).as_list()
    return torch.ops.sqkernels.spectral_decode(tensors, layout.numbers, scaling, splits)


@operator("sqkernels::spectral_decode")
def _spectral_decode(tensors: Sequence[Tensor], layout: Sequence[int], scaling: float, splits: int) -> Tensor:
    from sqkernels.spectral_decode.triton import decode_kernel

    call = AttentionCall.from_operator(tensors, layout, scaling)
    device, chosen = call.tensors.query.device, settings(call.kv_heads)
    preparation, partials = Preparation.of(call), Partials.of(call, splits)
    preparation.run(chosen.overlap, chosen.ahead > 0)
    decode_kernel[(call.kv_heads, splits)](
        **call.codes,
        **preparation.query_latents,
        **partials.arguments,
        token_bytes=call.layout.token_bytes,
        **call.products,
        BLOCK=chosen.block,
        STAGES=chosen.stages,
        ASSEMBLY=assembly(device),
        AHEAD=chosen.ahead,
        **overlap(device, chosen.overlap),
        num_warps=chosen.warps,
    )
    return reduce(partials, preparation, chosen.overlap)


@_spectral_decode.register_fake
def _(tensors: Sequence[Tensor], layout: Sequence[int], scaling: float, splits: int) -> Tensor:
    return torch.empty_like(AttentionTensors(*tensors).query)
