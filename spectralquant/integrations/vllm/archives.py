"""The archives that this process has open, one a store and model, so that an engine's scheduler and worker share one."""

from __future__ import annotations

import threading

from spectralquant.errors import InputError
from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.chunks import ChunkCodec, open_codec
from spectralquant.integrations.store import PacketStore
from spectralquant.integrations.vllm.facts import EngineFacts
from spectralquant.integrations.vllm.settings import TierSettings

_lock = threading.Lock()
_open: dict[tuple[TierSettings, str, int], ChunkArchive] = {}


def open_archive(settings: TierSettings, facts: EngineFacts, tokens: int) -> ChunkArchive:
    """The archive for an engine's chunks of `tokens` tokens.

    Raises:
        InputError: the store cannot be used, or the codec cannot code this engine's cache.
        ProfileError: the profile is damaged, or not one for serving.
    """
    key = (settings, facts.model, tokens)
    with _lock:
        if key not in _open:
            codec: ChunkCodec = open_codec(settings.codec, settings.device)
            store = PacketStore(settings.store, facts.namespace(codec.identity, tokens), settings.budget)
            _open[key] = ChunkArchive(store, codec, facts.shape, tokens)
        return _open[key]


def live_archives() -> list[ChunkArchive]:
    """Those of this process, in the order they were opened."""
    with _lock:
        return list(_open.values())


def require_shared_hashes() -> None:
    """Refuse an engine whose prefix hashes no other process can repeat: nothing stored would ever be found again.

    Raises:
        InputError: vLLM seeds its hashes at random, and PYTHONHASHSEED is not set.
    """
    import os

    from vllm.v1.core import kv_cache_utils

    if os.environ.get("PYTHONHASHSEED") is None and not hasattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED"):
        raise InputError(
            "This vLLM seeds its prefix hashes at random in every process, so no other process would find what this one "
            "stores: set the environment variable PYTHONHASHSEED=0 for every server of the store."
        )
