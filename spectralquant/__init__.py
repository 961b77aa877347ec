"""SpectralQuant: how small an LLM's KV cache can get, what it costs, and how fast it is.

Everything a notebook needs is imported from here; modules load when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from spectralquant.errors import renamed

_EXPORTS = {
    "calibrate": "spectralquant.calibrating.api",
    "CalibrationProfile": "spectralquant.profile.model",
    "SpectralHead": "spectralquant.profile.model",
    "CalibrationSettings": "spectralquant.calibration.options",
    "Ratio": "spectralquant.calibration.targets",
    "Bits": "spectralquant.calibration.targets",
    "DeltaPPL": "spectralquant.calibration.targets",
    "KL": "spectralquant.calibration.targets",
    "SpectralPacket": "spectralquant.codec.packet",
    "SpectralCache": "spectralquant.cache.spectral_cache",
    "GraphedModel": "spectralquant.graphed.model",
    "solve_shares": "spectralquant.evaluation.selection",
    "SpectralBufferPool": "spectralquant.cache.pool",
    "svd_reconstruct_attention": "spectralquant.cache.read.reconstruct_attention",
    "NotCompressedWarning": "spectralquant.errors",
    "bind": "spectralquant.cache.binding",
    "pack_prompt": "spectralquant.cache.persist.prompt",
    "unpack_cache": "spectralquant.cache.persist.prompt",
    "load_model": "spectralquant.models.load",
    "load_text": "spectralquant.text.read",
}
_DEPRECATED = {"SpectralKVCache": "SpectralCache"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        renamed(name, _DEPRECATED[name])
        name = _DEPRECATED[name]
    if name not in _EXPORTS:
        raise AttributeError(f"module 'spectralquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
