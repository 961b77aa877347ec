"""Packets between the lookup that read them and the load that decodes them."""

from __future__ import annotations

import threading


class KeptPackets:
    """Verified packets by key, `most` bytes of them; what is above is not kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._packets: dict[bytes, memoryview] = {}
        self._bytes = 0

    def keep(self, key: bytes, packet: memoryview) -> None:
        """Where there is room."""
        with self._lock:
            if key not in self._packets and self._bytes + len(packet) <= self._most:
                self._packets[key] = packet
                self._bytes += len(packet)

    def take(self, key: bytes) -> memoryview | None:
        """The packet, which is kept no longer."""
        with self._lock:
            packet = self._packets.pop(key, None)
            self._bytes -= len(packet or b"")
        return packet

    def __len__(self) -> int:
        return len(self._packets)
