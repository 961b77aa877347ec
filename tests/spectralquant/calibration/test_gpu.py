"""The same calibration on a GPU: same figures within rounding, same packets readable on the CPU."""

import copy

import pytest
import torch

from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.capture.samples import keep_sample
from spectralquant.calibration.capture.step import capture_step
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.models.load import LoadedModel
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

SETTINGS = CalibrationSettings(
    steps=8, window=384, held_out_windows=1, held_out_window=512, targets={"cold": parse_target("ratio=10")}
)


@pytest.mark.gpu
def test_gpu_and_cpu_agree(small):
    text = tokenize(small.tokenizer, load_text("builtin:pydoc"), 10_000)
    model = copy.deepcopy(small.model).cuda()
    there = LoadedModel(small.name, model, small.tokenizer, small.geometry)
    a, b = calibrate_model(small, text, SETTINGS), calibrate_model(there, text, SETTINGS)
    mine, theirs = a.sidecar.tiers["cold"].measured, b.sidecar.tiers["cold"].measured
    assert theirs["payload_ratio"] == pytest.approx(mine["payload_ratio"], rel=0.05)
    assert theirs["kl_nats"] == pytest.approx(mine["kl_nats"], rel=0.3)
    ids = text.windows(600, 1)
    packet = pack_prompt(model, b, ids.cuda())[0]
    on_gpu, on_cpu = unpack_cache(model, b, packet), unpack_cache(small.model, b, packet)
    for x, y in zip(on_gpu.layers, on_cpu.layers, strict=True):
        assert torch.allclose(x.keys.cpu(), y.keys, atol=1e-2)


@pytest.mark.gpu
def test_layers_run_again_and_samples_wait_in_pinned_memory(small):
    """On CUDA the layers run again in autograd's own thread, where the tap must still be seen."""
    model = copy.deepcopy(small.model).cuda()
    ids = torch.randint(0, 512, (96,), generator=torch.Generator().manual_seed(3))
    kept, again = (
        capture_step(model, small.geometry, ids, far_block=16, received_block=16, recompute=recompute)
        for recompute in (False, True)
    )
    for name in ("keys", "values", "key_grads", "value_grads", "received"):
        ours, theirs = getattr(kept, name), getattr(again, name)
        assert torch.allclose(theirs, ours, atol=1e-4 * float(ours.abs().max())), name
    sample = keep_sample(kept, ids, 16)
    assert sample.captured.rotated.is_pinned() and not sample.captured.plain.is_cuda
    assert torch.allclose(sample.rows(0, "cuda"), kept.keys[4:].flatten(1))
