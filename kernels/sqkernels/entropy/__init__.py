"""Interleaved range coding (rANS) of symbol matrices with static tables, alike on CPU and GPU."""

from sqkernels.entropy.api import Contexts, Decoded, Encoded, decode, encode, escape_positions
from sqkernels.entropy.layout import STREAM_LANES, BlockShape, StreamTable
from sqkernels.entropy.tables import RansTables

__all__ = [
    "STREAM_LANES",
    "BlockShape",
    "Contexts",
    "Decoded",
    "Encoded",
    "RansTables",
    "StreamTable",
    "decode",
    "encode",
    "escape_positions",
]
