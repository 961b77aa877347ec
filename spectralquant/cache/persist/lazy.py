"""`LazyLoader`: a packet file's blocks as a cache's cold blocks, read from the memory map when first used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spectralquant.codec.packet import Section, SpectralPacket


@dataclass(frozen=True)
class LazySection:
    """A coded section of an open packet."""

    packet: SpectralPacket
    section: Section

    def read(self) -> memoryview:
        """The section's bytes.

        Raises:
            PacketError: they are damaged.
        """
        return self.packet.body(self.section)


class LazyLoader:
    """An open packet whose sections are loaded on demand; nothing but header and index is read at first."""

    def __init__(self, source: str | Path | SpectralPacket) -> None:
        self.packet = source if isinstance(source, SpectralPacket) else SpectralPacket.open(source)

    def section(self, index: int) -> LazySection:
        """One section."""
        return LazySection(self.packet, self.packet.sections[index])
