"""vLLM's CPU engine with the hot tier in its pages: how many more pages there are, and what is read from them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.errors import InputError
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

pytestmark = pytest.mark.slow
ENGINE = Path(__file__).with_name("hot_engine.py")
SETTINGS = CalibrationSettings(
    steps=8,
    window=384,
    predict="none",
    purpose="serving",
    tiers=("hot",),
    held_out_windows=1,
    held_out_window=512,
    targets={"hot": parse_target("ratio=3")},
)


def engine(folder: Path, name: str, **environment: str) -> dict:
    out = folder / f"{name}.json"
    called = [sys.executable, str(ENGINE), str(folder / "model"), str(folder / "prompts.json"), str(out)]
    done = subprocess.run(called, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def llama(**sizes: int):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, vocab_size=512)).eval()


def profile_for_serving(model, tokenizer, text):
    return calibrate_model(LoadedModel("small", model, tokenizer, probe_geometry(model)), text, SETTINGS)


def test_more_pages_and_nearly_the_same_log_probabilities(tmp_path, tokenizer):
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = llama(**sizes, num_key_value_heads=2, head_dim=32)
    text = tokenize(tokenizer, load_text("builtin:pydoc"), 20_000)
    profile_for_serving(model, tokenizer, text).save(tmp_path / "hot")
    model.save_pretrained(tmp_path / "model")
    windows = text.windows(700, 3, 12_000).tolist()
    (tmp_path / "prompts.json").write_text(json.dumps([windows[0], windows[1][:300], windows[2][:130]]))
    plain = engine(tmp_path, "plain")
    hot = engine(tmp_path, "coded", SPECTRALQUANT_HOT_PROFILE=str(tmp_path / "hot"))
    assert hot["blocks"] > 2.2 * plain["blocks"]  # codes of a third, and a share of exact tokens
    assert hot["cached"] == plain["cached"] == 640
    a, b = (torch.tensor(x["logprobs"][0]) for x in (plain, hot))
    first = (a - b)[:250].abs().max()  # one step's tokens are read exactly
    later = (a - b)[260:].abs()
    assert first < 0.05
    assert 0 < later.mean() < 0.1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sliding_window": 64}, "sliding windows"),
        ({"logits_soft_cap": 30.0}, "soft-capped"),
        ({"kv_cache_dtype": "fp8"}, "fp8"),
        ({"alibi_slopes": [0.5]}, "ALiBi"),
    ],
)
def test_attention_that_is_not_read_is_refused(options, reason):
    from vllm.config import VllmConfig, set_current_vllm_config

    from spectralquant.integrations.vllm.hot.backend import HotAttention

    with set_current_vllm_config(VllmConfig()), pytest.raises(InputError, match=reason):
        HotAttention(4, 32, 0.1, 2, **options)


def test_a_connector_beside_hot_pages_is_refused():
    from vllm.config import KVTransferConfig, VllmConfig, set_current_vllm_config

    from spectralquant.integrations.vllm.hot.backend import HotAttention

    config = VllmConfig()
    config.kv_transfer_config = KVTransferConfig(kv_connector="SpectralConnector", kv_role="kv_both")
    with set_current_vllm_config(config), pytest.raises(InputError, match="not both"):
        HotAttention(4, 32, 0.1, 2)


def test_another_models_profile_is_refused(tmp_path, tokenizer):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tokenize(tokenizer, load_text("builtin:pydoc"), 20_000)
    profile_for_serving(llama(**sizes, head_dim=16), tokenizer, text).save(tmp_path / "other")
    llama(**sizes).save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.json").write_text("[[1, 2, 3]]")
    with pytest.raises(AssertionError, match="it is of another model"):
        engine(tmp_path, "coded", SPECTRALQUANT_HOT_PROFILE=str(tmp_path / "other"))
