"""`spectral`: our own codec as a method, one class a kind of tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectralquant.codec.block import KVBlock
from spectralquant.codec.fixed import FixedBlock, FixedRateCodec
from spectralquant.codec.packet import INDEX_ENTRY
from spectralquant.codec.spectral import SpectralCodec
from spectralquant.errors import InputError
from spectralquant.methods.context import MethodContext
from spectralquant.sources.weights import embedding_weight


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data) + INDEX_ENTRY.size


class SpectralCold:
    """Cold tier: real entropy-coded bytes, index entry and checksum included."""

    name = "spectral"

    def __init__(self, codec: SpectralCodec, exact_bits: int = 16, **options: Any) -> None:
        self.codec = codec
        self.exact_bits = exact_bits
        self.options = {"tier": "cold", "exact_bits": exact_bits, **options}

    def encode(self, block: KVBlock) -> _Bytes:
        return _Bytes(self.codec.encode(block))

    def decode(self, encoded: _Bytes) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded.data)


class SpectralFixed:
    """Warm or hot tier: packed fixed-rate codes."""

    name = "spectral"
    exact_bits = 16

    def __init__(self, codec: FixedRateCodec, **options: Any) -> None:
        self.codec = codec
        self.options = {"tier": "hot" if codec.rotated else "warm", **options}

    def encode(self, block: KVBlock) -> FixedBlock:
        return self.codec.encode(block)

    def decode(self, encoded: FixedBlock) -> tuple[Tensor, Tensor]:
        return self.codec.decode(encoded)


def spectral_from_profile(
    context: MethodContext, tier: str = "cold", step_scale: float = 1.0, exact_bits: int = 16, adaptive: bool = False
) -> SpectralCold | SpectralFixed:
    """A tier of the context's profile.

    Raises:
        InputError: no profile, or options out of range. ProfileError: it lacks the tier, or is another model's.
    """
    profile = context.need_profile("spectral")
    loaded = context.loaded
    if tier not in ("cold", "warm", "hot"):
        raise InputError(f"spectral: tier={tier!r} is not one of cold, warm, hot.")
    if not 0.05 <= step_scale <= 20:
        raise InputError(f"spectral: step_scale={step_scale:g} is outside 0.05 to 20.")
    if exact_bits not in (8, 16):
        raise InputError(f"spectral: exact_bits={exact_bits} is not one of 8, 16.")
    if tier != "cold":
        if step_scale != 1.0 or adaptive:
            raise InputError(f"spectral: step_scale and adaptive belong to the cold tier, not to {tier}.")
        return SpectralFixed(FixedRateCodec(profile.tier(tier), loaded.geometry, loaded.device, rotated=tier == "hot"))
    embedding = embedding_weight(loaded.model)
    codec = SpectralCodec(profile.tier("cold"), loaded.geometry, embedding, loaded.device, step_scale, adaptive)
    options = {} if step_scale == 1.0 else {"step_scale": step_scale}
    return SpectralCold(codec, exact_bits, **options)
