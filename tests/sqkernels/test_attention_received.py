"""Attention received from log-sum-exps, against softmax over all scores."""

import pytest
import torch

from sqkernels.attention_received import attention_received

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {
    "grouped": (2, 300, 4, 2, 24),
    "one-head": (1, 129, 2, 1, 64),
    "one-token": (1, 1, 2, 2, 16),
    "short": (1, 40, 3, 3, 128),
}


def case(batch, tokens, heads, kv_heads, dim):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, tokens, heads, dim, generator=generator, dtype=torch.float64).transpose(1, 2)
    key = torch.randn(batch, tokens, kv_heads, dim, generator=generator, dtype=torch.float64).transpose(1, 2)
    scores = query @ key.repeat_interleave(heads // kv_heads, 1).transpose(2, 3) * 0.3
    scores = scores.masked_fill(~torch.ones(tokens, tokens).tril().bool(), float("-inf"))
    return query, key, scores


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block", [64, 128])
def test_each_token_receives_what_softmax_gives_it(shape, backend, block):
    query, key, scores = case(*SHAPES[shape])  # float64, so that it is exact on any CPU
    place = torch.arange(query.shape[2])
    later = (place[:, None] > place) & (place[:, None] // block - place // block <= 1)
    wanted = (scores.softmax(-1) * later).sum(2)
    device = DEVICE if backend == "triton" else "cpu"
    dtype = torch.float32 if backend == "triton" else torch.float64
    query, key, lse = (t.to(device) for t in (query.to(dtype), key.to(dtype), scores.logsumexp(-1).float()))
    found = attention_received(query, key, lse, 0.3, block, backend=backend)
    tolerance = 5e-3 if device == "cuda" else 1e-5  # products of float32 are TF32 on a GPU
    assert torch.allclose(found.cpu().double(), wanted, atol=tolerance, rtol=tolerance)


def test_what_does_not_fit_is_refused():
    query, key, scores = case(1, 64, 4, 2, 16)
    lse = scores.logsumexp(-1).float()
    with pytest.raises(ValueError, match="do not fit"):
        attention_received(query, key[:, :, :10], lse, 0.3)
    with pytest.raises(ValueError, match="lse"):
        attention_received(query, key, lse[:, :, :3], 0.3)
    with pytest.raises(ValueError, match="multiple of 64"):
        attention_received(query, key, lse, 0.3, 100)
