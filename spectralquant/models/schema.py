"""What a profile notes of its model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ModelIdentity(BaseModel):
    """Which model a profile belongs to. Hashes are of sampled weights rounded to bfloat16 and to float16.

    weights_dtype: what the weights were calibrated in; weights_sketch: a sample of their values, where that is a half
    precision (see `models.identity`). Older profiles have neither.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    architecture: str
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    rotary: list[bool]
    vocabulary: int = Field(gt=0)
    weights_sha256_bfloat16: str
    weights_sha256_float16: str
    weights_dtype: str | None = None
    weights_sketch: str | None = None
