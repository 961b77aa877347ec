"""Pages that the kernel writes are the oracle's, up to values on the border between two codes."""

import pytest
import torch
from codes_for_tests import matrices_for

from sqkernels.common import PAGE
from sqkernels.common.reference import planes_of, read_dense, read_index, write_page
from sqkernels.spectral_compress import reference, spectral_compress

SHAPES = {
    "dim64-mixed": (64, [8] * 3 + [6, 5] + [4] * 40 + [3] * 3 + [2] * 9 + [1] * 3, 2),
    "dim64-ranks-by-head": (64, [([8, 8, *[4] * 30], [4] * 20), ([4] * 60, [*[4] * 40, *[2] * 11])], 2),
    "dim96-4bit": (96, [4] * 96, 1),
    "dim256-2bit": (256, [2] * 256, 1),
}


@pytest.mark.parametrize("tokens", [128, 124, 1, 63])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pages_equal_the_oracles(name, tokens, dtype):
    dim, bits, kv = SHAPES[name]
    matrices = matrices_for(kv, dim, bits, index=16)
    generator = torch.Generator().manual_seed(4)
    keys, values = (torch.randn(2, kv, tokens, dim, generator=generator).to(matrices.device, dtype) for _ in range(2))
    nbytes = matrices.layout.page_bytes
    pages = torch.tensor([nbytes, 0], device=matrices.device)
    storage = [torch.full((2 * nbytes,), 255, dtype=torch.uint8, device=matrices.device) for _ in range(2)]
    spectral_compress(keys, values, matrices, storage[0], pages, backend="triton")
    reference.spectral_compress(keys, values, matrices, storage[1], pages)
    dense = [read_dense(s.view(2, nbytes), matrices) for s in storage]
    slots = torch.cat([torch.arange(n * PAGE + PAGE - tokens, (n + 1) * PAGE) for n in range(2)]).to(matrices.device)
    for got, want in zip(*dense, strict=True):
        different = (got[:, slots] - want[:, slots]).abs().amax(-1) > 1e-4
        assert float(different.float().mean()) < 0.01
    found = [read_index(s.view(2, nbytes), matrices)[:, slots] for s in storage]
    assert float((found[0] != found[1]).float().mean()) < 0.002


def test_a_round_trip_is_within_half_a_step():
    matrices = matrices_for(1, 64, [6] * 64)
    x = torch.randn(1, 1, 128, 64, generator=torch.Generator().manual_seed(6)).to(matrices.device)
    x = (x * 0.3).clamp(-0.5, 0.5)
    storage = torch.zeros(matrices.layout.page_bytes, dtype=torch.uint8, device=matrices.device)
    spectral_compress(x, x, matrices, storage, torch.zeros(1, dtype=torch.int64, device=x.device), backend="triton")
    keys, _ = read_dense(storage[None], matrices)
    y = (x[0] @ matrices.key.encode + matrices.key.offset[:, None])[..., :64]
    inside = (y > 0) & (y < 63)
    back = (keys @ matrices.key.encode + matrices.key.offset[:, None])[..., :64]
    assert bool(((y - back).abs()[inside] < 0.51).all()) and float(inside.float().mean()) > 0.2


def test_oracle_page_holds_the_codes_it_was_given():
    matrices = matrices_for(2, 64, SHAPES["dim64-ranks-by-head"][1])
    x = torch.randn(2, 2, PAGE, 64, generator=torch.Generator().manual_seed(7)).to(matrices.device)
    page = write_page(x[0], x[1], matrices)
    for kind, data, m in ((0, x[0], matrices.key), (1, x[1], matrices.value)):
        from sqkernels.common.reference import read_planes

        component, _, widths = matrices.layout.plane_table(kind)
        planes = read_planes(page[None], matrices, kind).cpu()
        want = planes_of(data, m).cpu() & ((1 << widths) - 1)[:, None]
        centre = torch.tensor([0, 0.5, 1.5, 0, 8.0])[widths]
        used = (component >= 0)[:, None].expand_as(planes)
        assert torch.equal((planes + centre[:, None])[used], want.float()[used])


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_heads_coded_by_parts_leave_the_rest_of_a_page_alone(backend):
    matrices = matrices_for(4, 64, SHAPES["dim64-ranks-by-head"][1] * 2)
    x = torch.randn(1, 4, PAGE, 64, generator=torch.Generator().manual_seed(8)).to(matrices.device)
    at = torch.zeros(1, dtype=torch.int64, device=x.device)
    whole, parts = (torch.zeros(matrices.layout.page_bytes, dtype=torch.uint8, device=x.device) for _ in range(2))
    spectral_compress(x, x, matrices, whole, at, backend=backend)
    for first in (2, 0):
        some = x[:, first : first + 2].contiguous()
        spectral_compress(some, some, matrices.part(first, 2), parts, at, backend=backend)
    assert torch.equal(whole, parts)


def test_wrong_arguments_are_refused():
    matrices = matrices_for(1, 64, [4] * 64)
    x = torch.zeros(1, 1, 129, 64, device=matrices.device)
    storage = torch.zeros(10, dtype=torch.uint8, device=matrices.device)
    with pytest.raises(ValueError, match="1 to 128"):
        spectral_compress(x, x, matrices, storage, torch.zeros(1, dtype=torch.int64, device=matrices.device))
    with pytest.raises(ValueError, match="int64 \\[1\\]"):
        spectral_compress(x[:, :, :5], x[:, :, :5], matrices, storage, torch.zeros(2, dtype=torch.int64))
