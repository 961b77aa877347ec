"""Rotary embedding of one token in one launch."""

import pytest
import torch

from sqkernels.rotate import rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("heads", "kv", "dim"), [(4, 2, 64), (3, 1, 96), (8, 8, 128)])
@pytest.mark.parametrize("tables", [1, 2])
def test_kernel_and_reference_agree(heads, kv, dim, tables):
    generator = torch.Generator(device=DEVICE).manual_seed(0)
    shapes = ((2, 1, heads, dim), (2, 1, kv, dim), (tables, 1, dim), (tables, 1, dim))
    q, k, cos, sin = (torch.randn(s, generator=generator, device=DEVICE) for s in shapes)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    for a, b in zip(*(rotate(q, k, cos, sin, backend=name) for name in ("triton", "reference")), strict=True):
        torch.testing.assert_close(a, b)


def test_a_turn_by_the_tables_keeps_lengths_and_adds_angles():
    angle = torch.rand(2, 1, 32, device=DEVICE).repeat(1, 1, 2)
    q = torch.randn(2, 4, 1, 64, device=DEVICE)
    k = torch.randn(2, 2, 1, 64, device=DEVICE)
    once = rotate(q, k, angle.cos(), angle.sin(), backend="triton")
    twice = rotate(*once, angle.cos(), angle.sin(), backend="triton")
    for a, b in zip(twice, rotate(q, k, (2 * angle).cos(), (2 * angle).sin(), backend="triton"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(once[0].norm(dim=-1), q.norm(dim=-1))


def test_shapes_that_disagree_are_refused():
    q, k, table = torch.zeros(2, 4, 1, 64), torch.zeros(2, 2, 1, 64), torch.zeros(2, 1, 64)
    for bad in ((q, k, table[..., :32], table[..., :32]), (q, k[:1], table, table), (q[..., :63], k, table, table)):
        with pytest.raises(ValueError, match="disagree"):
            rotate(*bad)
