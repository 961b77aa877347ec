"""A folder of packets, addressed by an engine's prefix hash, that several processes share."""

from spectralquant.integrations.store.store import PacketStore
from spectralquant.integrations.store.tally import StoreTally

__all__ = ["PacketStore", "StoreTally"]
