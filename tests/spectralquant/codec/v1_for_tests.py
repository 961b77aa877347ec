"""Blocks as packets of format version 1 hold them; the program itself only reads them."""

import constriction
import numpy as np

from spectralquant.codec.cold.coded_block import ADAPTIVE, SPECTRAL, BlockParts, join
from spectralquant.codec.cold.symbols import ESCAPE, SPAN


def encode_v1(reader, symbols, classes, shifts=None):
    """Words and escapes of key and value symbols int32 `[T, R]` with classes `[T, 2]`, for an `EntropyReaderV1`."""
    coder = constriction.stream.stack.AnsCoder()
    escapes = []
    for kind in (1, 0):
        order, counts = reader.grouping(kind, classes[:, kind], None if shifts is None else shifts[kind])
        flat = symbols[kind].reshape(-1)[order]
        outside = np.abs(flat) > SPAN
        index = np.where(outside, ESCAPE, flat + SPAN).astype(np.int32)
        escapes.insert(0, flat[outside])
        stop = len(index)
        for table in reversed(range(len(counts))):
            start = stop - counts[table]
            if start < stop:
                coder.encode_reverse(index[start:stop], reader.models[table])
            stop = start
        if shifts is not None:
            coder.encode_reverse(shifts[kind].astype(np.int32), reader.shift_model)
    for kind in (1, 0):
        coder.encode_reverse(classes[:, kind].astype(np.int32), reader.class_models[kind])
    return coder.get_compressed(), np.concatenate(escapes).astype(np.int32)


def block_v1(codec, symbols, classes, ids=None, previous=-1, shifts=None):
    """The bytes of such a block: symbols `[R, T]`."""
    split = codec.coder.ranks[0]
    pair = tuple(np.ascontiguousarray(s.T) for s in (symbols[:split], symbols[split:]))
    words, escapes = encode_v1(codec.reader_v1, pair, classes, shifts)
    mode = SPECTRAL if shifts is None else ADAPTIVE
    return join(BlockParts(mode, len(classes), previous, ids, words, escapes, None))
