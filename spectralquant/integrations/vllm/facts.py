"""What an engine's KV cache looks like and whose it is, read from vLLM's configuration before the first chunk."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectralquant.errors import InputError
from spectralquant.integrations.chunks import ChunkShape

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SAMPLE_BYTES = 1 << 16
SAMPLES = 16


@dataclass(frozen=True)
class EngineFacts:
    """One group of attention layers, each with K and V of Hk heads of D, over `ranks` tensor-parallel workers.

    layers: how many; `order[i]` is the row (in vLLM's order of layers) of the model's layer i.
    block: tokens of a page. model: a text that names the weights and everything else that keys and values depend on.
    layout: how a page is laid out where vLLM says so (`HND`, `NHD`), or empty on the CPU build, which does not.
    """

    order: tuple[int, ...]
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    ranks: int
    block: int
    model: str
    layout: str = ""

    @property
    def layers(self) -> int:
        """L."""
        return len(self.order)

    @property
    def shape(self) -> ChunkShape:
        """The chunks of this engine: all heads of all ranks."""
        return ChunkShape((self.kv_heads,) * self.layers, (self.head_dim,) * self.layers, self.dtype)

    def namespace(self, codec: str, tokens: int) -> str:
        """What must agree between two engines that read each other's packets."""
        return json.dumps(
            {"model": self.model, "codec": codec, "chunk": tokens, "dtype": str(self.dtype)}, sort_keys=True
        )


_current: contextvars.ContextVar[EngineFacts | None] = contextvars.ContextVar("engine_facts", default=None)


@contextlib.contextmanager
def known(facts: EngineFacts) -> Iterator[None]:
    """While vLLM builds its offloading parts, which it does not tell these facts."""
    token = _current.set(facts)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> EngineFacts:
    """The facts of the engine that is being built.

    Raises:
        InputError: another connector builds it.
    """
    facts = _current.get()
    if facts is None:
        raise InputError(
            "SpectralQuant's tier needs SpectralQuant's connector, which tells it how keys and values are laid out: "
            'give "kv_connector": "SpectralConnector".'
        )
    return facts


def facts_of(vllm_config: Any, kv_cache_config: Any, layout: str) -> EngineFacts:
    """Read vLLM's configuration.

    Raises:
        InputError: a cache that is not plain keys and values of one kind of layer; the message says what would work.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise InputError(
            f"This model's layers form {len(groups)} groups of KV cache, and a chunk must hold all layers: start vLLM with "
            "--disable-hybrid-kv-cache-manager."
        )
    names = list(groups[0].layer_names)
    specs = list(getattr(groups[0].kv_cache_spec, "kv_cache_specs", {}).values()) or [groups[0].kv_cache_spec]
    first = specs[0]
    for spec in specs:
        _require_plain(spec, first)
    for name in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            raise InputError(
                f"{name} is {getattr(parallel, name)}: stored chunks need all layers in every rank; set it to 1."
            )
    ranks, heads = parallel.tensor_parallel_size, model.get_total_num_kv_heads()
    if first.num_kv_heads * ranks != heads:
        raise InputError(
            f"{heads} key/value heads over tensor_parallel_size {ranks} are held several times: use at most {heads} ranks."
        )
    return EngineFacts(
        order=_model_order(names),
        kv_heads=heads,
        head_dim=first.head_size,
        dtype=first.dtype,
        ranks=ranks,
        block=first.block_size,
        model=model_text(vllm_config),
        layout=layout,
    )


def _require_plain(spec: Any, first: Any) -> None:
    kind = type(spec).__name__
    if "MLA" in kind or not hasattr(spec, "num_kv_heads"):
        raise InputError(f"A KV cache of kind {kind} holds no plain keys and values; it cannot be stored.")
    if spec.dtype not in DTYPES:
        raise InputError(f"A KV cache of {spec.dtype} is quantized already: store it with --kv-cache-dtype auto.")
    if getattr(spec, "state_content_bytes", None) is not None or spec.page_size_padded is not None:
        raise InputError("This KV cache's pages are packed or padded by its attention backend; they cannot be stored.")
    if (spec.num_kv_heads, spec.head_size, spec.block_size, spec.dtype) != (
        first.num_kv_heads,
        first.head_size,
        first.block_size,
        first.dtype,
    ) or getattr(spec, "head_size_v", spec.head_size) != spec.head_size:
        raise InputError("This model's layers have heads of different sizes; they cannot be stored yet.")


def _model_order(names: list[str]) -> tuple[int, ...]:
    """Rows of the layers as the model counts them: `model.layers.10.…` comes after `model.layers.9.…`."""
    numbers = [tuple(int(word) for word in name.split(".") if word.isdigit()) for name in names]
    return tuple(sorted(range(len(names)), key=lambda i: numbers[i]))


def model_text(vllm_config: Any) -> str:
    """The weights and what else keys and values depend on, hashed: configuration with overrides, quantization, dtype."""
    model = vllm_config.model_config
    parts: dict[str, Any] = {
        "config": model.hf_config.to_dict(),
        "quantization": str(model.quantization),
        "dtype": str(model.dtype),
        "weights": weights_text(model.model, model.revision),
        "hash": str(vllm_config.cache_config.prefix_caching_hash_algo),
    }
    if str(vllm_config.load_config.load_format) == "dummy":
        parts["weights"] = f"dummy {model.seed}"
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def weights_text(model: str, revision: str | None) -> str:
    """A hash of names, sizes and samples of a folder's weight files; of a hub's model, its files in the local cache."""
    folder = Path(model)
    if not folder.is_dir():
        folder = _cached_snapshot(model, revision)
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".gguf", ".pt"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as handle:
            for i in range(SAMPLES):
                handle.seek(max(0, size - SAMPLE_BYTES) * i // (SAMPLES - 1))
                digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest() if files else f"{model}@{revision}"


def _cached_snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"The files of {model} are not on this machine, so nothing tells its weights from others': give the folder of "
            "the model."
        )
    return Path(path).parent


def replaced(facts: EngineFacts, **changes: Any) -> EngineFacts:
    """Facts with some of them changed."""
    return dataclasses.replace(facts, **changes)
