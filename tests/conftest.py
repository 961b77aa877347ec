"""Small random models and a tokenizer, made on the spot; the built-in model where a test needs a real one."""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are tested here; it must be set before triton is imported

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.calibration.targets import parse_target
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

os.environ.setdefault("PYTHONHASHSEED", "0")  # engines address chunks by hashes that are salted without it
collect_ignore_glob = [] if find_spec("vllm") else ["serving/*"]  # these need an engine (`make test-serving`)

if not torch.cuda.is_available() and find_spec("triton"):
    import quick_interpreter

    quick_interpreter.install()

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
}
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 64},
    "gemma2": {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "phi3": {"pad_token_id": 0, "partial_rotary_factor": 0.5},
}


def random_model(architecture: str = "llama", **changes):
    """A small random model; weights are scaled up so that attention is not uniform."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SMALL, **ARCHITECTURES.get(architecture, {}), **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 512 tokens, trained on the built-in text."""
    return small_tokenizer()


@functools.cache
def small_tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    documents = [text for text, _ in zip(load_text("builtin:pydoc"), range(20), strict=False)]
    raw.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="session")
def small(tokenizer) -> LoadedModel:
    """A random three-layer Llama with its tokenizer."""
    model = random_model()
    return LoadedModel("small-random", model, tokenizer, probe_geometry(model))


SMALL_CALIBRATION = CalibrationSettings(
    steps=8,
    window=384,
    tiers=TIERS,
    held_out_windows=1,
    held_out_window=512,
    targets={"cold": parse_target("ratio=10")},
)


@functools.cache
def profile_of(architecture: str, **changes) -> tuple[LoadedModel, CalibrationProfile]:
    """A random model of an architecture and a profile with all tiers, made once a session."""
    model = random_model(architecture, **changes)
    tokenizer = small_tokenizer()
    loaded = LoadedModel(f"small-{architecture}", model, tokenizer, probe_geometry(model))
    text = tokenize(tokenizer, load_text("builtin:pydoc"), 10_000)
    return loaded, calibrate_model(loaded, text, SMALL_CALIBRATION)


@pytest.fixture(scope="session")
def small_profile(small) -> CalibrationProfile:
    """All tiers of the small model (the random Llama)."""
    return profile_of("llama")[1]


@pytest.fixture(scope="session")
def small_folder(small, tmp_path_factory) -> Path:
    """The same model as a local folder."""
    folder = tmp_path_factory.mktemp("model")
    small.model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def builtin() -> LoadedModel:
    """The built-in model (fetched on first use)."""
    return load_model("builtin:smollm2-135m", device="cpu")


def pytest_collection_modifyitems(items) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
