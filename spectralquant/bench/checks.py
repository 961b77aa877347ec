"""Is a kernel right? Relative L2 error of a sequence against float64, and how much is allowed."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralquant.bench.inputs import Inputs
from sqkernels.common import ExactTokens, RowPages
from sqkernels.common.reference import exact_tokens, read_dense, sequence_pages
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_decode.reference import attend
from sqkernels.spectral_index_decode import select_tokens, spectral_index_decode
from sqkernels.spectral_index_decode.reference import attend_selected
from sqkernels.spectral_reconstruct import spectral_reconstruct


def operator_of(kernel: str) -> str:
    """`spectral_decode` of `spectral_decode:VARIANT`."""
    return kernel.partition(":")[0]


def backend_of(kernel: str) -> str:
    """`VARIANT` of `spectral_decode:VARIANT`, else triton."""
    return kernel.partition(":")[2] or "triton"


def check_kernel(name: str, inputs: Inputs, share: float) -> tuple[float, float]:
    """Error of the last sequence and its limit: twice what eager attention over reconstructed bfloat16 keys and values
    loses, and two units of the output's precision. All sequences run: a kernel may be wrong for a batch alone."""
    operator, backend = operator_of(name), backend_of(name)
    pages, scaling, row = inputs.pages, inputs.query.shape[-1] ** -0.5, inputs.pages.batch - 1
    one = RowPages(pages.storage, *(x[row:] for x in (pages.pages, pages.first, pages.tokens)), pages.matrices)
    parts = (inputs.exact.sink_keys, inputs.exact.sink_values, inputs.exact.window_keys, inputs.exact.window_values)
    exact = ExactTokens(*(x[row:] for x in parts))
    query, count = inputs.query[row:], int(pages.tokens[row])
    keys, values = (x[:, :count] for x in read_dense(sequence_pages(one, 0), pages.matrices, torch.float64))
    if operator == "spectral_reconstruct":
        rebuilt = spectral_reconstruct(pages.storage, pages.pages, pages.matrices, torch.bfloat16, backend=backend)
        error = max(relative_error(f[row, :, :count], w) for f, w in zip(rebuilt, (keys, values), strict=True))
        return error, 2 * relative_error(keys.bfloat16(), keys) + 1e-3
    if operator == "spectral_decode":
        got = spectral_decode(inputs.query, pages, inputs.exact, backend=backend)[row:]
        want = attend(query[0], (keys, values), exact_tokens(exact, 0, torch.float64), scaling)[None]
    else:
        got = spectral_index_decode(inputs.query, pages, inputs.exact, share, backend=backend)[row:]
        selected = select_tokens(query, one, exact, share, backend="triton")
        want = attend_selected(query.double(), one, exact, selected, scaling, torch.float64)
    rounded = tuple(x.bfloat16().float() for x in (keys, values))
    eager = attend(query[0].float(), rounded, exact_tokens(exact, 0, torch.float32), scaling)
    full = attend(query[0].double(), (keys, values), exact_tokens(exact, 0, torch.float64), scaling)
    return relative_error(got, want), 2 * relative_error(eager, full) + 2 * torch.finfo(torch.bfloat16).eps


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖; NaN counts as infinite."""
    error = float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))
    return error if error == error else float("inf")
