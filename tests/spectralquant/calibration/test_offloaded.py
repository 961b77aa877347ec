"""Weights that accelerate fetches when they are used: one layer's lie on the device at a time, in the backward pass too."""

from __future__ import annotations

import pytest
import torch
from accelerate import disk_offload
from accelerate.utils.offload import OffloadedWeightsLoader
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaConfig, LlamaForCausalLM

from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.surroundings import own_run
from spectralquant.text.tokens import TokenText

LAYERS = 6
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


class Fetched:
    """Bytes of decoder layers that were fetched and are still there; the most there were."""

    def __init__(self) -> None:
        self.some: list[tuple[StorageWeakRef, int]] = []
        self.most = 0

    def add(self, storage: torch.UntypedStorage) -> None:
        self.some = [(one, size) for one, size in self.some if not one.expired()]
        self.some.append((StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(size for _, size in self.some))


@pytest.fixture
def fetched(monkeypatch):
    seen, load = Fetched(), OffloadedWeightsLoader.__getitem__

    def watched(self, key):
        weight = load(self, key)
        if ".layers." in key:
            seen.add(weight.untyped_storage())
        return weight

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", watched)
    return seen


def test_a_layer_that_runs_again_puts_its_last_weights_away_too(fetched, tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
    model = disk_offload(model, tmp_path / "off", execution_device=torch.device("cpu"))
    loaded = LoadedModel("small", model, None, probe_geometry(model))
    settings = CalibrationSettings(steps=2, window=384, tiers=("cold",), recompute=True, held_out_windows=1)
    text = TokenText(torch.randint(0, 256, (40 * 384,)))
    with own_run(model):
        run = CalibrationRun(loaded, text, settings, "text", None, False, None, lambda stage, done, total: None)
        fetched.most = 0
        run.first_pass()
    assert 0.9 * layer < fetched.most <= 1.01 * layer
    assert all(weight.is_meta for weight in model.parameters())
