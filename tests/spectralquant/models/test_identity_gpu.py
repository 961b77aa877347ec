"""A model is the same model on a GPU, and CUDA's autocast changes nothing that a packet holds."""

import copy

import pytest
import torch

import spectralquant as sq
from tests.conftest import profile_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_a_profile_of_the_cpu_serves_the_gpu(dtype):
    loaded, profile = profile_of("llama")
    profile.require_model(copy.deepcopy(loaded.model).to("cuda", dtype))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_packets_are_the_same_bytes_under_autocast(dtype):
    loaded, profile = profile_of("llama")
    model = copy.deepcopy(loaded.model).to("cuda")
    ids = torch.randint(0, 512, (1, 600), generator=torch.Generator().manual_seed(5)).to("cuda")
    plain = bytes(sq.pack_prompt(model, profile, ids)[0].data)
    with torch.autocast("cuda", dtype), torch.inference_mode():
        assert bytes(sq.pack_prompt(model, profile, ids)[0].data) == plain
        cache = sq.SpectralCache(model, profile, tier="hot")
        model(input_ids=ids, past_key_values=cache)
        cache.pack()
