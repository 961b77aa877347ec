"""TurboQuant against its paper's distortion figures (arXiv 2504.19874, theorem 1)."""

import pytest
import torch

from spectralquant.codec.turboquant import TurboQuantizer, random_rotation


@pytest.mark.parametrize("bits, expected", [(1, 0.36), (2, 0.117), (3, 0.0345), (4, 0.0095)])
@pytest.mark.parametrize("dim", [64, 128])
def test_distortion_of_unit_vectors(bits, expected, dim):
    x = torch.randn(4000, dim, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 5
    x = x / x.norm(dim=1, keepdim=True)
    quantizer = TurboQuantizer(dim, bits)
    error = (quantizer.decode(quantizer.encode(x)) - x).square().sum(1).mean().item()
    assert error == pytest.approx(expected, rel=0.05)


def test_bytes_are_bits_plus_a_norm():
    coded = TurboQuantizer(64, 3).encode(torch.randn(10, 64))
    assert coded.nbytes == 10 * (64 * 3 // 8 + 2)


def test_rotation_is_orthogonal_and_seeded():
    r = random_rotation(64, 0)
    assert torch.allclose(r @ r.T, torch.eye(64), atol=1e-5)
    assert not torch.equal(r, random_rotation(64, 1))


def test_zero_vectors_stay_zero():
    quantizer = TurboQuantizer(16, 2)
    assert quantizer.decode(quantizer.encode(torch.zeros(3, 16))).abs().max() == 0
