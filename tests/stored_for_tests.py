"""The model that the files under `tests/data/stored` were made for, and how they were made.

Its weights come from numpy's legacy generator, whose stream never changes, so no file of weights is kept.

`python tests/stored_for_tests.py FOLDER` makes such files with the code of a checkout: put it, and its `kernels`, first on
PYTHONPATH. The stored ones were made at commit 7c5484a (packet.v1, profile) and bee9835 (packet.v2, from the same
profile). `expected.v1` is what commit 7c5484a itself read from packet.v1's coded tokens, `expected.v2` what bee9835 read from packet.v2's.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = 260
CODED = slice(4, 128)


def stored_model() -> LlamaForCausalLM:
    """Two layers, 4 query and 2 key/value heads of 16, 512 tokens."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=512,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    stream = np.random.RandomState(14)
    with torch.no_grad():
        for _name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 2:
                values = stream.randint(-127, 128, tuple(parameter.shape)) / np.float32(1024)
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))
            else:
                parameter.fill_(1.0)
    return model


def prompt() -> torch.Tensor:
    """Token ids `[1, TOKENS]`."""
    return torch.from_numpy(np.random.RandomState(15).randint(0, 512, (1, TOKENS)))


def values_of(cache) -> torch.Tensor:
    """Keys and values `[L, 2, Hk, T, D]` of a restored cache, float32."""
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]).float()


def _make(folder) -> None:
    """Both old and new names of modules: this runs in checkouts of either."""
    import importlib
    from pathlib import Path

    from safetensors.torch import save_file

    def either(*places):
        for module, name in places:
            try:
                return getattr(importlib.import_module(module), name)
            except ImportError:
                continue
        raise SystemExit(f"none of {places}")

    load_text = either(("spectralquant.text.read", "load_text"), ("spectralquant.sources.text", "load_text"))
    pack = either(("spectralquant.cache.persist.prompt", "pack_prompt"), ("spectralquant.cache.prompt", "pack_prompt"))
    unpack = either(
        ("spectralquant.cache.persist.prompt", "unpack_cache"), ("spectralquant.cache.prompt", "unpack_cache")
    )
    kind = either(
        ("spectralquant.profile.model", "CalibrationProfile"), ("spectralquant.profile", "CalibrationProfile")
    )
    from conftest import small_tokenizer

    from spectralquant.calibrating.api import calibrate
    from spectralquant.calibration.options import TIERS, CalibrationSettings

    folder, model = Path(folder), stored_model()
    if not (folder / "profile.json").exists():
        settings = CalibrationSettings(window=384, held_out_windows=1, held_out_window=512, tiers=TIERS)
        text = load_text("builtin:pydoc")
        made = calibrate(model, small_tokenizer(), text, steps=8, target="ratio=10", settings=settings, name="stored")
        made.save(folder / "profile")
    profile = kind.load(folder / "profile")
    packet = pack(model, profile, prompt(), exact="int8")[0]
    version = int.from_bytes(bytes(packet.data[4:6]), "little")
    (folder / f"packet.v{version}.sqkv").write_bytes(bytes(packet.data))
    values = values_of(unpack(model, profile, packet))
    save_file({"values": values[..., CODED, :].half().contiguous()}, folder / f"expected.v{version}.safetensors")


if __name__ == "__main__":
    import sys

    _make(sys.argv[1])
