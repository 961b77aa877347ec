"""`ChunkArchive`: a codec over a store, which is all that an engine's adapter talks to. It raises nothing while serving."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from spectralquant.errors import InputError, PacketError
from spectralquant.integrations.chunks import Chunk, ChunkCodec, ChunkShape
from spectralquant.integrations.store import PacketStore, StoreTally

log = logging.getLogger(__name__)


class ChunkArchive:
    """Chunks under an engine's prefix hashes.

    What cannot be stored is not stored; what cannot be read back whole is a miss. Thread-safe, as its parts are.
    """

    def __init__(self, store: PacketStore, codec: ChunkCodec, shape: ChunkShape, tokens: int) -> None:
        """Chunks of `tokens` tokens each.

        Raises:
            InputError: the codec cannot code chunks of that shape or length.
        """
        codec.require(shape)
        if tokens % codec.granularity:
            raise InputError(
                f"Chunks of {tokens} tokens cannot be coded by {codec.identity}: their length must be a multiple of "
                f"{codec.granularity} tokens. Set the engine's chunk length (vLLM: block_size beside the tier's settings)."
            )
        self.tokens = tokens
        self.store = store
        self.codec = codec
        self.shape = shape

    def __contains__(self, key: bytes) -> bool:
        """Whether there seems to be a packet: enough to save the work of making it again."""
        return key in self.store

    def has(self, key: bytes) -> bool:
        """As `key in archive`, but the packet does not count as used."""
        return self.store.has(key)

    def lookup(self, key: bytes) -> bool:
        """Whether there is a whole packet."""
        return self.store.lookup(key)

    def look(self, key: bytes) -> memoryview | None:
        """As `lookup`: the whole packet."""
        return self.store.look(key)

    def put(self, keys: Sequence[bytes], chunks: Sequence[Chunk]) -> int:
        """Code and store chunks, those that are not there yet; how many are there afterwards."""
        new = [(key, chunk) for key, chunk in zip(keys, chunks, strict=True) if key not in self.store]
        if not new:
            return len(keys)
        start = time.perf_counter()
        try:
            packets = self.codec.encode([chunk for _, chunk in new])
        except Exception:  # an engine must not end because a chunk could not be coded
            log.exception("%d chunks were not coded", len(new))
            return len(keys) - len(new)
        self.store.count(encode_s=time.perf_counter() - start)
        token = self.shape.bytes_per_token
        kept = sum(
            self.store.save(key, packet, chunk.tokens * token)
            for (key, chunk), packet in zip(new, packets, strict=True)
        )
        return len(keys) - len(new) + kept

    def get(self, keys: Sequence[bytes], known: Mapping[bytes, memoryview | None] = {}) -> list[Chunk | None]:
        """Chunks as they were stored, decoded; None where one cannot be had. What the codec refuses is deleted.

        Args:
            known: packets that `look` returned a moment ago; the others are read.
        """
        packets = [self.store.load(key) if known.get(key) is None else known[key] for key in keys]
        there = [(i, packet) for i, packet in enumerate(packets) if packet is not None]
        start = time.perf_counter()
        chunks = self._decode([packet for _, packet in there])
        self.store.count(decode_s=time.perf_counter() - start, decodings=int(bool(there)))
        result: list[Chunk | None] = [None] * len(keys)
        for (i, _), chunk in zip(there, chunks, strict=True):
            result[i] = chunk
            if chunk is None:
                self.store.discard(keys[i])
        return result

    @property
    def tally(self) -> StoreTally:
        """What this process did so far."""
        return self.store.tally

    def _decode(self, packets: list[memoryview]) -> list[Chunk | None]:
        if not packets:
            return []
        try:
            chunks = self.codec.decode(packets, self.shape)
            if len(chunks) != len(packets) or any(c.tokens != self.tokens or c.shape != self.shape for c in chunks):
                raise PacketError("a chunk of another shape or length came out of a packet")
            return list(chunks)
        except Exception as error:  # one packet that the codec refuses must not cost the others
            if len(packets) == 1:
                log.warning("a packet was not decoded: %s", error)
                return [None]
            return [self._decode([packet])[0] for packet in packets]
