"""One file of the store: a packet, what it is the packet of, and a digest over all of it.

8 bytes   magic, with the version of this layout
32 bytes  SHA-256 of the namespace (model, codec, chunk length: everything that decoding depends on)
8 bytes   bytes of the chunk before coding, little endian
4 bytes   length of the key
8 bytes   length of the packet
key, packet
32 bytes  SHA-256 of everything before
"""

from __future__ import annotations

import hashlib
import struct

MAGIC = b"SQSTORE1"
HEAD = struct.Struct("<8s32sQIQ")
DIGEST_BYTES = 32


def sealed(key: bytes, namespace: str, packet: bytes, raw_bytes: int) -> bytes:
    """The content of a file."""
    head = HEAD.pack(MAGIC, _name(namespace), raw_bytes, len(key), len(packet))
    body = b"".join((head, key, packet))
    return body + hashlib.sha256(body).digest()


def opened(data: bytes, key: bytes, namespace: str) -> memoryview | None:
    """The packet in a file's content (not a copy), or None where the file is damaged, cut short, or of another key or namespace."""
    if len(data) < HEAD.size + DIGEST_BYTES:
        return None
    magic, name, _, key_bytes, packet_bytes = HEAD.unpack_from(data)
    start = HEAD.size + key_bytes
    if magic != MAGIC or name != _name(namespace) or len(data) != start + packet_bytes + DIGEST_BYTES:
        return None
    view = memoryview(data)
    if view[HEAD.size : start] != key or hashlib.sha256(view[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        return None
    return view[start:-DIGEST_BYTES]


def _name(namespace: str) -> bytes:
    return hashlib.sha256(namespace.encode()).digest()
