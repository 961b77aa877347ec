"""What a user writes into `kv_connector_extra_config`, under `"spectral"`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectralquant.errors import InputError, did_you_mean
from spectralquant.integrations.chunks import LOSSLESS
from spectralquant.sizes import parse_size

SECTION = "spectral"
DEFAULT_TOKENS = 128
DEFAULT_CPU_BYTES = 4 << 30


@dataclass(frozen=True)
class TierSettings:
    """Where prefixes are stored and how.

    store: the folder; several servers may share it.
    budget: bytes on disk for the whole folder, or a size such as `"20GB"`.
    codec: `lossless`, or a profile for serving (`sq calibrate --for serving`).
    device: where the codec works, `cpu` or `cuda`.
    threads: how many chunks are coded at once, and as many are decoded at once (on a GPU no fewer than two).
    waiting: most bytes of chunks, as the engine holds them, that wait to be stored; more are not stored.
    ready: most bytes of restored chunks that wait for the engine to take them, and more are misses (CPU build); most bytes of
        packets between lookup and load, and more are read again (GPU).
    """

    store: str
    budget: int
    codec: str = LOSSLESS
    device: str = "cpu"
    threads: int = 1
    waiting: int = 1 << 30
    ready: int = 2 << 30


def read_settings(extra: Mapping[str, Any]) -> TierSettings:
    """The settings in a connector's extra configuration.

    Raises:
        InputError: the section or a required setting is missing, one is unknown, or a value is of the wrong kind.
    """
    section = extra.get(SECTION)
    example = '"spectral": {"store": "/var/cache/prefixes", "budget": "20GB", "codec": "/models/serving-profile"}'
    if not isinstance(section, Mapping):
        raise InputError(f"kv_connector_extra_config needs a section {example}.")
    names = [field.name for field in dataclasses.fields(TierSettings)]
    for name in section:
        if name not in names:
            raise InputError(
                f"{SECTION}.{name} is no setting; there are {', '.join(names)}.{did_you_mean(str(name), names)}"
            )
    for name in ("store", "budget"):
        if name not in section:
            raise InputError(f"{SECTION}.{name} is missing: kv_connector_extra_config needs {example}.")
    values = dict(section)
    for name in ("budget", "waiting", "ready"):
        if isinstance(values.get(name), str):
            values[name] = parse_size(values[name], f"{SECTION}.{name}")
    for name, kind in (("store", str), ("codec", str), ("device", str)):
        if name in values and not isinstance(values[name], kind):
            raise InputError(f"{SECTION}.{name} is a text, not {values[name]!r}.")
    for name in ("budget", "threads", "waiting", "ready"):
        if name in values and (type(values[name]) is not int or values[name] < 1):
            raise InputError(f"{SECTION}.{name} is a positive whole number, not {values[name]!r}.")
    return TierSettings(**{**values, "store": str(Path(values["store"]).expanduser())})


def complete(extra: dict[str, Any], gpu: bool) -> None:
    """Fill in, where the user left it open, what vLLM's offloading needs: chunks of 128 tokens, and our spec or our tier.

    On a GPU vLLM keeps its own tier in CPU memory in front of ours (`cpu_bytes_to_use`, 4 GiB unless said otherwise).
    """
    from spectralquant.integrations.vllm.plugin import PACKAGE, SPEC, TIER

    read_settings(extra)
    if "blocks_per_chunk" not in extra:
        extra.setdefault("block_size", DEFAULT_TOKENS)
    if gpu:
        extra.setdefault("spec_name", "TieringOffloadingSpec")
        extra.setdefault("cpu_bytes_to_use", DEFAULT_CPU_BYTES)
        extra.setdefault("secondary_tiers", [{"type": TIER}])
    else:
        extra.setdefault("spec_name", SPEC)
        extra.setdefault("spec_module_path", f"{PACKAGE}.cpu_spec")
