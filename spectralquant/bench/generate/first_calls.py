"""What a new process waits for kernels: the first call of each, with an empty and with a filled compilation cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any

import torch

from spectralquant.bench.inputs import CodeSettings, random_inputs, random_matrices
from spectralquant.models.shapes import ModelShape
from sqkernels.rotate import rotate
from sqkernels.spectral_compress import spectral_compress
from sqkernels.spectral_decode import spectral_decode
from sqkernels.spectral_index_decode import spectral_index_decode

CONTEXT = 8192


def first_call_rows(shape: ModelShape) -> list[dict[str, Any]]:
    """Seconds of every kernel's first call in two new processes that share a compilation cache, empty before the first."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("empty", "filled"):
            environment = os.environ | {"TRITON_CACHE_DIR": folder}
            command = [sys.executable, "-m", "spectralquant.bench.generate.first_calls", json.dumps(asdict(shape))]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            rows.append({"kind": "first_calls", "method": "hot", "compilation_cache": cache, **json.loads(done.stdout)})
    return rows


def _main() -> None:
    shape = ModelShape(**json.loads(sys.argv[1]))
    device = torch.device("cuda")
    settings = CodeSettings()
    matrices = random_matrices(shape, settings, device)
    inputs = random_inputs(shape, matrices, 1, CONTEXT, 128, 0)
    block = torch.randn(1, shape.kv_heads, 128, shape.head_dim, device=device, dtype=torch.bfloat16)
    where = torch.zeros(1, dtype=torch.int64, device=device)
    table = torch.randn(1, 1, shape.head_dim, device=device, dtype=torch.bfloat16)
    storage = torch.zeros(matrices.layout.page_bytes, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    spectral_decode(inputs.query, inputs.pages, inputs.exact)
    spectral_index_decode(inputs.query, inputs.pages, inputs.exact, 0.05)
    spectral_compress(block, block, matrices, storage, where)
    rotate(inputs.query[:, :, None], block[:, :, :1], table, table)
    torch.cuda.synchronize()
    print(json.dumps({"seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    _main()
