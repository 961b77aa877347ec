"""Fixed-rate codes: how a value's nearest point is found."""

import pytest
import torch

from spectralquant.codec.block_rotary import rotate_block_keys, unrotate_block_keys
from spectralquant.codec.fixed.codec import _Codebooks, _passed
from spectralquant.codec.hot.codec import HotBlock
from spectralquant.rotary import Rotation


@pytest.mark.parametrize("points", [2, 4, 8, 16, 32, 256])
def test_comparisons_find_what_a_search_finds(points):
    generator = torch.Generator().manual_seed(points)
    middles = torch.randn(7, points - 1, generator=generator).sort(dim=1).values
    y = torch.randn(7, 50, generator=generator)
    y[:, 0], y[:, 1], y[:, 2] = float("inf"), float("-inf"), float("nan")
    y[:, 3] = middles[:, 0]
    assert torch.equal(_passed(middles, y), torch.searchsorted(middles, y).to(torch.uint8))


def test_codes_name_the_nearest_point():
    generator = torch.Generator().manual_seed(0)
    bits = torch.tensor([3, 0, 1, 5, 3], dtype=torch.uint8)
    points = torch.cat([torch.randn(2**b, generator=generator).sort().values for b in bits.tolist()])
    books = _Codebooks(bits, points)
    y = torch.randn(40, len(bits), generator=generator)
    codes = books.encode(y)
    starts = torch.cumsum(2 ** bits.long(), 0) - 2 ** bits.long()
    for r, (start, width) in enumerate(zip(starts.tolist(), bits.tolist(), strict=True)):
        own = points[start : start + 2**width]
        assert torch.equal(codes[:, r].long(), (y[:, r, None] - own).abs().argmin(1))
    assert torch.equal(books.decode(codes), points[starts + codes.long()])


@pytest.mark.parametrize("rotated_dim", [4, 8])
def test_layers_that_share_their_tables_are_rotated_at_once_and_alike(rotated_dim):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(6, 3, 2, 8, generator=generator)
    angle = torch.randn(6, rotated_dim // 2, generator=generator)
    shared = HotBlock((), (Rotation(angle.cos(), angle.sin()),) * 3)
    apart = HotBlock((), tuple(Rotation(angle.cos(), angle.sin()) for _ in range(3)))
    for function in (rotate_block_keys, unrotate_block_keys):
        assert torch.allclose(function(shared, keys), function(apart, keys), atol=1e-6)
    assert torch.allclose(unrotate_block_keys(shared, rotate_block_keys(shared, keys)), keys, atol=1e-5)
