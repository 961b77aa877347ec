"""What a packet must look like to become a cache: checked before anything is allocated, on its index alone."""

from __future__ import annotations

from collections.abc import Sequence

from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.codec.packet import CODED, EXACT, Section, SpectralPacket
from spectralquant.errors import PacketError
from spectralquant.geometry import BLOCK, SINKS


def require_room(packet: SpectralPacket, group: int, codec: SpectralCodec) -> None:
    """Refuse coded sections of a group that announce more tokens than their bytes can hold with its codec.

    Raises:
        PacketError: naming the section.
    """
    for section in packet.sections:
        if section.group == group and section.kind == CODED and section.length < codec.least_bytes(section.tokens):
            raise PacketError(
                f"The section of tokens {section.start} to {section.start + section.tokens} has {section.length} bytes; with "
                f"this profile that many tokens take {codec.least_bytes(section.tokens)} at least. The packet is not genuine."
            )


def require_blocks(packet: SpectralPacket) -> None:
    """Refuse sections that are not a cache's: sinks, then blocks up to multiples of 128 tokens, then recent tokens.

    Raises:
        PacketError: naming the section.
    """
    for group in range(len(packet.header.all_groups)):
        _require_group([s for s in packet.sections if s.group == group], packet.header.tokens)


def _require_group(sections: Sequence[Section], total: int) -> None:
    last = max((i for i, s in enumerate(sections) if s.kind == CODED), default=-1)
    for index, section in enumerate(sections[: last + 1]):
        stop = section.start + section.tokens
        if section.start == 0:
            good = section.kind == EXACT and section.tokens == SINKS
        else:
            good = stop == (section.start // BLOCK + 1) * BLOCK or (index == last and stop == total)
        if not good:
            raise PacketError(
                f"The section of tokens {section.start} to {stop} is not one of a cache's: {SINKS} exact sinks, then blocks "
                f"that end at multiples of {BLOCK}. `unpack_cache` may still read it."
            )
