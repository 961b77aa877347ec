"""Every kernel once or twice at small, odd sizes, for NVIDIA's compute-sanitizer (`make sanitize`, on a GPU).

Results are compared with the oracles, so that a run that reads nothing wrong is also seen to compute something. Without
PyTorch's caching allocator (PYTORCH_NO_CUDA_MEMORY_CACHING=1) every tensor ends where its memory does, and a read past it is
found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from codes_for_tests import exact_for, matrices_for, pages_for, query_for, relative_error

from sqkernels.common import PAGE
from sqkernels.common.reference import read_dense
from sqkernels.dense_decode import dense_decode
from sqkernels.dense_decode import reference as dense_reference
from sqkernels.spectral_compress import reference as compress_reference
from sqkernels.spectral_compress import spectral_compress
from sqkernels.spectral_decode import reference as decode_reference
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import reference as index_reference
from sqkernels.spectral_index_decode import select_tokens, spectral_index_decode
from sqkernels.spectral_reconstruct import reference as reconstruct_reference
from sqkernels.spectral_reconstruct import spectral_reconstruct

SHAPES = {
    "dim64, ranks by head": (64, [([8, 8, *[4] * 30], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11])], 2, 3),
    "dim128, 4 bits": (128, [4] * 128, 1, 4),
}
TOKENS, WINDOW, FIRST = [300, 1, 63], [37, 1, 60], 3
LIMIT = 1e-2


def cases() -> list[tuple[str, Callable[[], float]]]:
    """(name, a function that runs the kernel and returns its error against the oracle)."""
    found: list[tuple[str, Callable[[], float]]] = []
    for name, (dim, bits, kv, group) in SHAPES.items():
        matrices = matrices_for(kv, dim, bits, index=16)
        pages = pages_for(matrices, TOKENS, first=FIRST)
        exact = exact_for(matrices, len(TOKENS), 4, WINDOW)
        query = query_for(matrices, len(TOKENS), group)

        def decode(query=query, pages=pages, exact=exact, dim=dim) -> float:
            want = decode_reference.spectral_decode(query.double(), pages, exact, dim**-0.5, torch.float64)
            return relative_error(spectral_decode(query, pages, exact, backend="triton"), want)

        def index(query=query, pages=pages, exact=exact, dim=dim) -> float:
            chosen = select_tokens(query, pages, exact, 0.25, backend="triton")
            want = index_reference.attend_selected(query.double(), pages, exact, chosen, dim**-0.5, torch.float64)
            return relative_error(spectral_index_decode(query, pages, exact, 0.25, backend="triton"), want)

        def reconstruct(pages=pages, matrices=matrices) -> float:
            got = spectral_reconstruct(pages.storage, pages.pages, matrices, torch.float16, backend="triton")
            want = reconstruct_reference.spectral_reconstruct(
                pages.storage, pages.pages, matrices, torch.float64, None, torch.float64
            )
            return max(relative_error(g, w) for g, w in zip(got, want, strict=True))

        def compress(matrices=matrices, kv=kv, dim=dim) -> float:
            nbytes = matrices.layout.page_bytes
            x = torch.randn(2, kv, 124, dim, generator=torch.Generator().manual_seed(4)).to(matrices.device)
            where = torch.tensor([nbytes, 0], device=matrices.device)
            stores = [torch.zeros(2 * nbytes, dtype=torch.uint8, device=matrices.device) for _ in range(2)]
            spectral_compress(x, x, matrices, stores[0], where, backend="triton")
            compress_reference.spectral_compress(x, x, matrices, stores[1], where)
            got, want = (read_dense(s.view(2, nbytes), matrices)[0].unflatten(1, (2, PAGE))[:, :, 4:] for s in stores)
            return relative_error(got, want)

        found += [
            (f"spectral_decode, {name}", decode),
            (f"spectral_index_decode, {name}", index),
            (f"spectral_reconstruct, {name}", reconstruct),
            (f"spectral_compress, {name}", compress),
        ]

    def dense() -> float:
        generator = torch.Generator().manual_seed(0)
        keys, values = (torch.randn(2, 2, 63, 64, generator=generator).half().to(query.device) for _ in range(2))
        asked = torch.randn(2, 6, 64, generator=generator).half().to(query.device)
        want = dense_reference.dense_decode(asked, keys, values, 0.125, torch.float64)
        return relative_error(dense_decode(asked, keys, values, backend="triton"), want)

    return [*found, ("dense_decode", dense)]


def main() -> int:
    wrong = 0
    for name, run in cases():
        error = run()
        wrong += not error < LIMIT
        print(f"{name}: error {error:.2g}{'' if error < LIMIT else ' (WRONG)'}", flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
