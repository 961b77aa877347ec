"""What a packet must look like to become a cache: checked before anything is allocated, on its index alone."""

from __future__ import annotations

from spectralquant.codec.block import BLOCK, SINKS
from spectralquant.codec.packet import CODED, EXACT, SpectralPacket
from spectralquant.codec.spectral import SpectralCodec
from spectralquant.errors import PacketError


def require_room(packet: SpectralPacket, codec: SpectralCodec) -> None:
    """Refuse coded sections that announce more tokens than their bytes can hold with this profile.

    Raises:
        PacketError: naming the section.
    """
    for section in packet.sections:
        if section.kind == CODED and section.length < codec.least_bytes(section.tokens):
            raise PacketError(
                f"The section of tokens {section.start} to {section.start + section.tokens} has {section.length} bytes; with "
                f"this profile that many tokens take {codec.least_bytes(section.tokens)} at least. The packet is not genuine."
            )


def require_blocks(packet: SpectralPacket) -> None:
    """Refuse sections that are not a cache's: sinks, then blocks up to multiples of 128 tokens, then recent tokens.

    Raises:
        PacketError: naming the section.
    """
    sections = packet.sections
    last = max((i for i, s in enumerate(sections) if s.kind == CODED), default=-1)
    for index, section in enumerate(sections[: last + 1]):
        stop = section.start + section.tokens
        if index == 0:
            good = section.kind == EXACT and section.tokens == SINKS
        else:
            good = stop == (section.start // BLOCK + 1) * BLOCK or (index == last and stop == packet.header.tokens)
        if not good:
            raise PacketError(
                f"The section of tokens {section.start} to {stop} is not one of a cache's: {SINKS} exact sinks, then blocks "
                f"that end at multiples of {BLOCK}. `unpack_cache` may still read it."
            )
