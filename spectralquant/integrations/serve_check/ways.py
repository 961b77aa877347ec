"""Ways to serve: the engine alone, with our tier, and with vLLM's own tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectralquant.integrations.chunks import LOSSLESS
from spectralquant.integrations.vllm.plugin import CONNECTOR, PACKAGE

RECOMPUTE = "recompute"
SPECTRAL = "spectral"
MEMORY = "vllm-cpu-memory"
FILES = "vllm-files"
VLLM_CHUNK = 128


def ours(store: Path, budget: int, codec: str, device: str, cpu_bytes: int | None = None) -> dict[str, Any]:
    """`KVTransferConfig` of the tier. cpu_bytes: of vLLM's tier in CPU memory before it, on a GPU."""
    extra: dict[str, Any] = {"spectral": {"store": str(store), "budget": budget, "codec": codec, "device": device}}
    if cpu_bytes:
        extra["cpu_bytes_to_use"] = cpu_bytes
    return {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": f"{PACKAGE}.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }


def vllm_own(folder: Path, cpu_bytes: int) -> dict[str, Any]:
    """`KVTransferConfig` of vLLM's tier in CPU memory with files behind it. Both need a GPU."""
    extra: dict[str, Any] = {
        "block_size": VLLM_CHUNK,
        "cpu_bytes_to_use": cpu_bytes,
        "spec_name": "TieringOffloadingSpec",
        "secondary_tiers": [{"type": "fs", "root_dir": str(folder)}],
    }
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def codec_of(way: str, profile: str | None) -> str:
    """What our tier codes with."""
    return LOSSLESS if way == LOSSLESS else str(profile)
