"""The working set on a GPU: the worker's stream against the model's, and hot codes read in place."""

import pytest
import torch
from gpu_for_tests import GPU, distance, model_on, prompt, steps

from spectralquant import SpectralCache
from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.cache.read import working_set

pytestmark = pytest.mark.gpu
NEXT = prompt(working_set.LAG + 4, seed=5)
EVERYTHING = 1 << 30


def run(dtype, **options):
    model, profile = model_on(GPU, dtype)
    packet = pack_prompt(model, profile, prompt(1200).to(GPU))[0]
    cache = SpectralCache.unpack(model, profile, packet, background=True, **options)
    return steps(model, cache, NEXT), cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tier", ["exact", "warm", "hot"])
def test_a_slow_worker_changes_no_number(tier, dtype, monkeypatch):
    calm, first = run(dtype, working_set=EVERYTHING, working_tier=tier)
    assert set(first.reader.working.kept) == set(first.state.sequences[0])
    make = working_set.WorkingSet._make

    def late(self, *arguments):
        torch.cuda._sleep(40_000_000)
        made = make(self, *arguments)
        torch.cuda._sleep(40_000_000)
        return made

    monkeypatch.setattr(working_set.WorkingSet, "_make", late)
    slow, _ = run(dtype, working_set=EVERYTHING, working_tier=tier)
    assert torch.equal(slow, calm)


def test_kept_hot_codes_read_as_cold_blocks_do_within_their_error():
    logits, cache = run(torch.bfloat16, working_set=EVERYTHING, working_tier="hot")
    assert {kind for kind, _, _ in cache.reader.runs()} == {"hot"}
    plain, _ = run(torch.bfloat16)
    assert 0 < distance(logits, plain) < 0.3
