"""Compile every kernel for a GPU that is not here: `python compile_for_gpu.py`, one line of JSON a kernel.

The interpreter runs kernels as Python and accepts much that the compiler refuses; launches are replaced by compilation for
compute capability 9.0, everything else is what a GPU machine does.
"""

import json
import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class AbsentGpu:
    """A driver that knows its target and can launch nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_interface(self):
        return torch.cpu

    def get_active_torch_device(self):
        return torch.device("cpu")


driver.set_active(AbsentGpu())
launch = JITFunction.run


def compile_only(self, *args, grid, warmup, **options):
    kernel = launch(self, *args, grid=grid, warmup=True, **options)
    print(json.dumps({"kernel": kernel.metadata.name, "shared": kernel.metadata.shared}), flush=True)
    return kernel


JITFunction.run = compile_only
torch.cuda.get_device_capability = lambda device=None: (9, 0)

from codes_for_tests import exact_for, matrices_for, pages_for, query_for  # noqa: E402
from test_rans import draw  # noqa: E402

from sqkernels.attention_received.launch import attention_received  # noqa: E402
from sqkernels.common import runtime  # noqa: E402
from sqkernels.dense_decode.launch import launch as dense  # noqa: E402
from sqkernels.entropy import ops as entropy  # noqa: E402
from sqkernels.spectral_compress.ops import compress  # noqa: E402
from sqkernels.spectral_decode.ops import decode  # noqa: E402
from sqkernels.spectral_index_decode.ops import index_decode  # noqa: E402
from sqkernels.spectral_reconstruct.ops import reconstruct  # noqa: E402
from sqkernels.spectral_rows import LayerTensors, TokenSlots, Turns  # noqa: E402
from sqkernels.spectral_rows import launch as rows  # noqa: E402
from sqkernels.spectral_slots import page_bytes  # noqa: E402
from sqkernels.spectral_slots.ops import write  # noqa: E402

runtime.assembly.__code__ = (lambda device: True).__code__
SHAPES = {
    "uniform": (128, [4] * 128, 4, 1),
    "mixed": (64, [([8, 8, *[4] * 30, 3], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11, 1])], 3, 2),
}


def main() -> None:
    for dim, bits, group, kv in SHAPES.values():
        matrices = matrices_for(kv, dim, bits, index=16, device="cpu")
        pages = pages_for(matrices, [200, 1])
        exact, query = exact_for(matrices, 2, 4, [37, 1], torch.bfloat16), query_for(matrices, 2, group, torch.bfloat16)
        decode(query, pages, exact, 0.1)
        index_decode(query, pages, exact, 0.25, 0.1)
        tables = torch.zeros(2, 256, dim)
        for rope in (None, (tables, tables)):
            reconstruct(pages.storage, pages.pages, matrices, torch.bfloat16, rope)
        block = torch.zeros(1, kv, 100, dim, dtype=torch.bfloat16)
        compress(block, block, matrices, pages.storage, torch.zeros(1, dtype=torch.int64))
        without = matrices_for(kv, dim, bits, device="cpu")
        for tokens in (3, 100):
            token = torch.zeros(tokens, kv, dim, dtype=torch.bfloat16)
            engine_pages = torch.zeros(1, page_bytes(without, 4), dtype=torch.uint8)
            write(token, token, without, engine_pages, torch.arange(tokens), 4)
        cache = torch.zeros(2, kv, 64, dim, dtype=torch.bfloat16)
        dense(query, cache, cache, 0.1)
    for shifted in (False, True):
        for lanes in (32, 7):
            table, contexts, tables, symbols, initial = draw([(32, lanes, 2)], 24, 1, shifted)
            counts = torch.zeros(len(table), dtype=torch.int64)
            states = torch.zeros(table.lanes, dtype=torch.uint32)
            words = torch.zeros(0, dtype=torch.uint16)
            entropy.decode(words, counts, states, counts, table, contexts, tables, torch.int16)
            entropy.encode(symbols, initial, table, contexts, tables)
        entropy.escape_positions(symbols, table, contexts, tables)
    spectral_rows()
    query = torch.zeros(1, 4, 100, 128, dtype=torch.bfloat16)
    attention_received(query, query[:, :2], torch.zeros(1, 4, 100), 0.1, 128)


def spectral_rows() -> None:
    symbols, classes = torch.zeros(40, 100, dtype=torch.int8), torch.zeros(2, 100, dtype=torch.uint8)
    ones, y = torch.ones(40), torch.zeros(40, 100)
    places, values = torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int32)
    rows.dequantize(symbols, classes, 20, ones, ones, places, values, y.half())
    rows.quantize(y, ones, classes, 20)
    rows.row_energy(y, ones)
    cache = LayerTensors(tuple(torch.zeros(1, 2, 100, 128, dtype=torch.bfloat16) for _ in range(2)))
    slots = TokenSlots.dense(cache.tensors[0], torch.zeros(100, dtype=torch.int64), torch.arange(100))
    x, constant = torch.zeros(100, 512, dtype=torch.float16), torch.zeros(512)
    predicted, ids = torch.zeros(2, 9, 512, dtype=torch.float16), torch.zeros(2, 100, dtype=torch.int32)
    for pairs in (64, 48, 0):
        turns = Turns(torch.zeros(100, pairs), torch.zeros(100, pairs)) if pairs else None
        rows.store_rows(x, constant, predicted, ids, turns, cache, 0, slots, 2, 1.0)
        rows.gather_rows(cache, 0, slots, 2, constant, None, None, turns, x)


if __name__ == "__main__":
    sys.exit(main())
