"""`SpectralChunks`: a profile for serving as an engine's codec (see `integrations.chunk`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from spectralquant.codec.cold.from_profile import chosen_bound, cold_codec
from spectralquant.codec.serving.chunk_bytes import CODES
from spectralquant.codec.serving.codec import KVChunk, ServingCodec
from spectralquant.errors import InputError, PacketError, ProfileError
from spectralquant.integrations.chunk import Chunk, ChunkShape, stacked_layers
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.tensors import ColdTier

VERSION = 1


class SpectralChunks:
    """The cold tier of a profile that was calibrated for serving.

    granularity: any number of tokens can be coded; few in a chunk cost more (a chunk's coder states and header).
    step_scale, bound: as of `SpectralCache`. device: `cpu`, or `cuda` to code on the engine's own GPU.

    Raises:
        ProfileError: the profile is for caches of transformers. InputError: a bound that it was not calibrated for.
    """

    lossless = False
    granularity = 1

    def __init__(
        self,
        profile: CalibrationProfile,
        device: torch.device | str = "cpu",
        *,
        step_scale: float = 1.0,
        bound: float | str | None = "auto",
    ) -> None:
        rotary = profile.require_serving()
        tier = profile.tier("cold")
        if not isinstance(tier, ColdTier):
            raise ProfileError("A profile for serving codes all layers as one; this one does not. Calibrate again.")
        self.profile, self.geometry = profile, profile.geometry
        self.bound = chosen_bound(profile, bound)
        layers = tuple(range(self.geometry.layers))
        codec = cold_codec(profile, tier, layers, self.geometry, None, device, step_scale=step_scale, bound=self.bound)
        self.codec = ServingCodec(codec, rotary)
        named = f"{VERSION}:{profile.sidecar.tensors_sha256}:{step_scale!r}:{self.bound!r}"
        self.identity = f"spectral-{hashlib.sha256(named.encode()).hexdigest()[:32]}"

    def require(self, shape: ChunkShape) -> None:
        """See `ChunkCodec.require`."""
        g, model = self.geometry, self.profile.sidecar.model
        if shape.kv_heads != (g.kv_heads,) * g.layers or shape.head_dim != (g.head_dim,) * g.layers:
            raise InputError(
                f"The profile is of {model.name}: {g.layers} layers of {g.kv_heads} key/value heads of {g.head_dim}. The engine "
                f"has {len(shape.kv_heads)} layers of {_all(shape.kv_heads)} heads of {_all(shape.head_dim)}. Calibrate one for "
                "the model that is served: sq calibrate --for serving --model MODEL."
            )
        if shape.dtype not in CODES:
            raise InputError(
                f"The engine's cache holds {str(shape.dtype).removeprefix('torch.')}; bfloat16, float16 and float32 are coded. "
                "Serve with --kv-cache-dtype auto."
            )

    def sample(self, count: int, tokens: int, shape: ChunkShape) -> list[Chunk]:
        """See `ChunkCodec.sample`: on a GPU alone, where kernels are compiled."""
        if self.codec.device.type != "cuda":
            return []
        return [Chunk(c.start, c.keys, c.values) for c in self.codec.sample(count, tokens, shape.dtype)]

    def encode(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """See `ChunkCodec.encode`."""
        return self.codec.encode([KVChunk(c.start, stacked_layers(c.keys), stacked_layers(c.values)) for c in chunks])

    def decode(self, packets: Sequence[bytes | memoryview], shape: ChunkShape) -> list[Chunk]:
        """See `ChunkCodec.decode`."""
        self.require(shape)
        try:
            decoded = self.codec.decode(packets, shape.dtype)
        except PacketError:
            raise
        except (ValueError, IndexError, RuntimeError) as error:  # whatever bytes do to a coder, the engine goes on
            raise PacketError(f"A chunk cannot be decoded: {error}") from error
        return [Chunk(c.start, c.keys, c.values) for c in decoded]


def open_spectral(path: Path, device: str = "cpu") -> SpectralChunks:
    """The codec of a profile for serving.

    Raises:
        ProfileError: it is missing, damaged, or not for serving.
    """
    return SpectralChunks(CalibrationProfile.load(path), device)


def _all(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))
