"""The model with large key channels is the model: only what a codec sees differs."""

import copy

import torch
from conftest import profile_of

from research.rivals.outliers import enlarge_keys
from spectralquant.hooks.kv_capture import capture_keys_values


def test_large_key_channels_change_no_logit_and_every_key():
    loaded, _ = profile_of("llama")
    ids = torch.randint(0, 200, (64,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = loaded.model(input_ids=ids[None]).logits
    plain = capture_keys_values(loaded.model, loaded.geometry, ids)[0]
    changed = copy.deepcopy(loaded)
    enlarge_keys(changed, 30.0)
    with torch.no_grad():
        after = changed.model(input_ids=ids[None]).logits
    large = capture_keys_values(changed.model, changed.geometry, ids)[0]
    assert torch.allclose(before, after, atol=1e-4)
    dim = loaded.geometry.head_dim
    ratio = (large / plain).view(-1, dim).median(0).values
    assert torch.allclose(ratio[[dim // 2 - 1, dim - 1]], torch.full((2,), 30.0), rtol=1e-3)
    assert torch.allclose(ratio[: dim // 2 - 1], torch.ones(dim // 2 - 1), rtol=1e-3)
