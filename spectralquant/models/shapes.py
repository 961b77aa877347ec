"""Model shapes that kernels are timed at."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from spectralquant.errors import InputError, did_you_mean


@dataclass(frozen=True)
class ModelShape:
    """What attention and the rest of a decoder layer need to know of a model. windows: tokens that each layer of its cache
    reads at most (None: all); empty: every layer reads all.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocab: int
    windows: tuple[int | None, ...] = ()

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in 16 bits, all layers."""
        return 4 * self.layers * self.kv_heads * self.head_dim

    @property
    def weight_bytes(self) -> int:
        """Bytes of the 16-bit weights that a decode step reads (embedding lookup left out)."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return 2 * (self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab)

    @classmethod
    def of_config(cls, name: str, config: Any) -> ModelShape:
        """From a transformers configuration."""
        config = config.get_text_config()
        heads = config.num_attention_heads
        return cls(
            name,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.hidden_size,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            config.vocab_size,
            _windows(config),
        )


def _windows(config: Any) -> tuple[int | None, ...]:
    """Of the layers that transformers' own cache of a model keeps; empty where all of the model's layers keep everything."""
    from transformers import DynamicCache

    layers = [layer for layer in DynamicCache(config=config).layers if type(layer).__name__ != "DummyLayer"]
    windows = tuple(getattr(layer, "sliding_window", None) for layer in layers)
    return windows if any(windows) or len(windows) < config.num_hidden_layers else ()


GEMMA_WINDOWS = (512, 512, 512, 512, 512, None) * 3
SHAPES = {
    s.name: s
    for s in (
        ModelShape("llama-3.1-8b", 32, 32, 8, 128, 4096, 14336, 128256),
        ModelShape("llama-3.1-70b", 80, 64, 8, 128, 8192, 28672, 128256),
        ModelShape("qwen2.5-7b", 28, 28, 4, 128, 3584, 18944, 152064),
        ModelShape("mistral-7b", 32, 32, 8, 128, 4096, 14336, 32768),
        ModelShape("smollm2-135m", 30, 9, 3, 64, 576, 1536, 49152),
        ModelShape("gemma3-270m", 18, 4, 1, 256, 640, 2048, 262144, GEMMA_WINDOWS),
    )
}


def parse_shape(text: str) -> ModelShape:
    """A name of `SHAPES`, with fields changed where wanted, or a shape of one's own.

    `llama-3.1-70b:layers=4` is the 70B model's shape with four layers;
    `custom:layers=32,heads=32,kv_heads=8,head_dim=128[,hidden=…,intermediate=…,vocab=…]` is free.

    Raises:
        InputError: no such name, an unknown or missing field, or heads that kernels cannot take.
    """
    name, colon, rest = text.partition(":")
    if name != "custom" and name not in SHAPES:
        names = (*SHAPES, "custom:layers=…,heads=…,kv_heads=…,head_dim=…")
        raise InputError(f"There is no shape {name!r}; there are {', '.join(names)}.{did_you_mean(name, SHAPES)}")
    values = _fields(rest) if colon else {}
    if name != "custom":
        shape = replace(SHAPES[name], name=text, **values)
    else:
        missing = [n for n in ("layers", "heads", "kv_heads", "head_dim") if n not in values]
        if missing:
            raise InputError(f"A custom shape needs {', '.join(missing)} as well.")
        hidden = values.setdefault("hidden", values["heads"] * values["head_dim"])
        values.setdefault("intermediate", 4 * hidden)
        values.setdefault("vocab", 32000)
        shape = ModelShape(name="custom", **values)
    if shape.heads % shape.kv_heads:
        raise InputError(f"A shape's {shape.heads} heads must be a multiple of its {shape.kv_heads} key/value heads.")
    return shape


def _fields(text: str) -> dict[str, int]:
    """`layers=4,heads=8` as numbers."""
    known = [f.name for f in fields(ModelShape) if f.name not in ("name", "windows")]
    values: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in known or not number.isdecimal() or int(number) < 1:
            raise InputError(f"{part!r} in a shape is not one of {', '.join(known)} with a positive number.")
        if name in values:
            raise InputError(f"{name} is given twice in the shape {text!r}.")
        values[name] = int(number)
    return values
