"""General compressors on the same symbols: zstd, and nvCOMP where it is installed (`nvidia-nvcomp-cu13`)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RUNS = 5


def zstd_row(symbols: Tensor, level: int = 1) -> dict[str, Any]:
    """Size and times of zstd on one CPU thread; symbols int8 `[R, N]`, each component's tokens together."""
    data = symbols.cpu().numpy().tobytes()
    pyarrow = importlib.import_module("pyarrow")
    codec = pyarrow.Codec("zstd", compression_level=level)
    packed = codec.compress(data, asbytes=True)
    encode = _wall(lambda: codec.compress(data, asbytes=True))
    decode = _wall(lambda: codec.decompress(packed, decompressed_size=len(data), asbytes=True))
    assert codec.decompress(packed, decompressed_size=len(data), asbytes=True) == data
    return {"coder": f"zstd level {level}", "bytes": len(packed), "encode_s": encode, "decode_s": decode}


def nvcomp_rows(symbols: Tensor) -> list[dict[str, Any]]:
    """Sizes and times of nvCOMP's ANS and zstd on symbols int8 `[R, N]` on a GPU; none where it is not installed."""
    try:
        nvcomp = importlib.import_module("nvidia.nvcomp")
    except ImportError:
        return []
    flat = symbols.contiguous().view(-1)
    out = []
    for algorithm in ("ANS", "Zstd"):
        codec = nvcomp.Codec(algorithm=algorithm)
        array = nvcomp.as_array(flat)
        packed = codec.encode(array)
        back = torch.as_tensor(codec.decode(packed), device=symbols.device).view(torch.int8)
        assert torch.equal(back.view(-1), flat), f"nvCOMP's {algorithm} did not give the symbols back"
        encode = _wall(_synced(lambda codec=codec, array=array: codec.encode(array)))
        decode = _wall(_synced(lambda codec=codec, packed=packed: codec.decode(packed)))
        out.append(
            {"coder": f"nvCOMP {algorithm}", "bytes": int(packed.buffer_size), "encode_s": encode, "decode_s": decode}
        )
    return out


def _synced(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _wall(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[RUNS // 2]
