"""Bytes: what kernels say at their launch is what the counting functions say, and what an independent count says."""

import pytest
import torch
from codes_for_tests import DEVICE, exact_for, matrices_for, pages_for, query_for

from sqkernels.common import PAGE
from sqkernels.common.runtime import multiprocessors
from sqkernels.spectral_compress import compress_traffic, spectral_compress
from sqkernels.spectral_decode import decode_traffic, spectral_decode
from sqkernels.spectral_decode.settings import choose_splits
from sqkernels.spectral_index_decode import index_traffic, spectral_index_decode
from sqkernels.spectral_reconstruct import reconstruct_traffic, spectral_reconstruct

BITS = [([8, 8, *[4] * 30], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11])]


@pytest.fixture
def launches(monkeypatch):
    """What every launch's metadata says, in order: on a GPU and in the interpreter alike."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    seen = []

    def watch(kind, metadata_of):
        run = kind.run

        def watched(self, *args, grid, warmup, **kwargs):
            metadata = metadata_of(self)
            if metadata is not None:
                seen.append(metadata(grid, None, dict(zip(self.arg_names, args, strict=False)) | kwargs))
            return run(self, *args, grid=grid, warmup=warmup, **kwargs)

        monkeypatch.setattr(kind, "run", watched)

    watch(InterpretedFunction, lambda kernel: kernel.kwargs["launch_metadata"])
    watch(JITFunction, lambda kernel: kernel.launch_metadata)
    return seen


@pytest.fixture(scope="module")
def parts():
    matrices = matrices_for(2, 64, BITS, index=16)
    exact = exact_for(matrices, 3, 4, 36, torch.bfloat16)
    exact = type(exact)(exact.sink_keys, exact.sink_values, exact.window_keys, exact.window_values)
    return matrices, pages_for(matrices, [5 * PAGE] * 3), exact, query_for(matrices, 3, 3, torch.bfloat16)


def names(launches):
    return [launch["name"] for launch in launches]


def test_decode(parts, launches):
    matrices, pages, exact, query = parts
    spectral_decode(query, pages, exact, backend="triton")
    assert names(launches) == ["spectral_prepare", "spectral_decode_640", "spectral_decode_reduce"]
    traffic = decode_traffic(matrices, 640, 40, 3, processors=multiprocessors(query.device), batch=3)
    assert sum(launch["bytes"] for launch in launches) == traffic["bytes"]


def test_index_decode(parts, launches):
    matrices, pages, exact, query = parts
    spectral_index_decode(query, pages, exact, 0.25, backend="triton")
    assert names(launches) == ["spectral_index_scan_640", "spectral_index_gather_640", "spectral_decode_reduce"]
    traffic = index_traffic(matrices, 640, 40, 160, 3, batch=3)
    assert sum(launch["bytes"] for launch in launches) == traffic["bytes"]


def test_compress(parts, launches):
    matrices = parts[0]
    block = torch.randn(2, 2, PAGE, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.bfloat16)
    storage = torch.zeros(2 * matrices.layout.page_bytes, dtype=torch.uint8, device=DEVICE)
    pages = torch.tensor([0, matrices.layout.page_bytes], device=DEVICE)
    spectral_compress(block, block, matrices, storage, pages, backend="triton")
    assert [launch["bytes"] for launch in launches] == [compress_traffic(matrices, 2 * PAGE)["bytes"]]


def test_reconstruct(parts, launches):
    matrices, pages, *_ = parts
    spectral_reconstruct(pages.storage, pages.pages, matrices, torch.bfloat16, backend="triton")
    assert [launch["bytes"] for launch in launches] == [reconstruct_traffic(matrices, 15 * PAGE)["bytes"]]


def test_splits_are_written_and_read():
    """8B shape at batch 8 on 132 multiprocessors: the sums of 16 splits, about 4 MB, once written and once read."""
    matrices = matrices_for(8, 128, [4] * 128, device="cpu")
    coded, kv, batch = 32768, 8, 8
    splits = choose_splits(batch * kv, coded // PAGE, 132)
    assert splits == 16
    codes = batch * kv * 128 * coded  # two halves of a byte a component, keys and values
    sums = batch * kv * splits * 4 * (4 * 128 + 2 * 4)  # a group of 4: planes, maximum and norm
    traffic = decode_traffic(matrices, coded, 0, 4, processors=132, batch=batch)["bytes"]
    assert 4e6 < 2 * sums < 4.5e6
    assert codes + 2 * sums < traffic < codes + 2 * sums + 3e6


def test_share_of_dense_at_the_shape_of_the_target():
    matrices = matrices_for(8, 128, [4] * 128, index=16, device="cpu")
    dense = 2 * 8 * 128 * 2 * 32768
    decode = decode_traffic(matrices, 32768, 0, 4, processors=132)["bytes"] / dense
    index = index_traffic(matrices, 32768 - 4 * PAGE, 4 * PAGE, 2000, 4)["bytes"] / dense
    assert 0.25 < decode < 0.29 and 0.03 < index < 0.075
    assert index < index_traffic(matrices, 32768 - 4 * PAGE, 4 * PAGE, 2500, 4)["bytes"] / dense
