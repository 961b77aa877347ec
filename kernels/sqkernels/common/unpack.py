"""Device functions: bytes of rows to planes as float16, `[T, planes]`. W: units of a band, T: tokens of a tile."""

import triton
import triton.language as tl

# Nibbles become low mantissa bits of 1024.0: n, 16·n or, shifted, n and 16·n above it. Five instructions for eight nibbles.
_NIBBLES: tl.constexpr = tl.constexpr("""
{
.reg .b32 t;
lop3.b32 $0, $4, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 $1, $4, 0x00F000F0, 0x64006400, 0xEA;
shr.b32 t, $4, 8;
lop3.b32 $2, t, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 $3, t, 0x00F000F0, 0x64006400, 0xEA;
}
""")
# The same, and back to n − 8: 1024 + n − 1032, and (1024 + 16·n) / 16 − 72 in one instruction; both exact.
_CENTRED: tl.constexpr = tl.constexpr("""
{
.reg .b32 t, c, f, k;
mov.b32 c, 0xE408E408;
mov.b32 f, 0x2C002C00;
mov.b32 k, 0xD480D480;
lop3.b32 $0, $4, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 $1, $4, 0x00F000F0, 0x64006400, 0xEA;
shr.b32 t, $4, 8;
lop3.b32 $2, t, 0x000F000F, 0x64006400, 0xEA;
lop3.b32 $3, t, 0x00F000F0, 0x64006400, 0xEA;
add.f16x2 $0, $0, c;
fma.rn.f16x2 $1, $1, f, k;
add.f16x2 $2, $2, c;
fma.rn.f16x2 $3, $3, f, k;
}
""")


@triton.jit
def unpack4(words, ASSEMBLY: tl.constexpr):
    """Nibbles 0 … 3 of `words: uint16` as float16: 1024 + n, 1024 + 16·n, 1024 + n, 1024 + 16·n (see `device.key_latents`)."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            _NIBBLES,
            "=&r,=&r,=&r,=&r,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    first = ((words & 0x000F) | 0x6400).to(tl.float16, bitcast=True)
    second = ((words & 0x00F0) | 0x6400).to(tl.float16, bitcast=True)
    third = (((words >> 8) & 0x000F) | 0x6400).to(tl.float16, bitcast=True)
    fourth = (((words >> 8) & 0x00F0) | 0x6400).to(tl.float16, bitcast=True)
    return first, second, third, fourth


@triton.jit
def unpack4_centred(words, ASSEMBLY: tl.constexpr):
    """Nibbles 0 … 3 of `words: uint16` minus 8, as float16."""
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            _CENTRED,
            "=&r,=&r,=&r,=&r,r",
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    first, second, third, fourth = unpack4(words, ASSEMBLY)
    return first - 1032.0, second * 0.0625 - 72.0, third - 1032.0, fourth * 0.0625 - 72.0


@triton.jit
def unpack_small(raw, WIDTH: tl.constexpr, TOKENS: tl.constexpr, BYTES: tl.constexpr):
    """Planes of 1 or 2 bits minus their centre, float16 `[T, BYTES · 8 / WIDTH]`, of `raw: [T, BYTES]`."""
    PER: tl.constexpr = 8 // WIDTH
    shift = (tl.arange(0, PER) * WIDTH).to(tl.uint8)
    planes = (raw[:, None, :] >> shift[None, :, None]) & (2**WIDTH - 1)
    centred = planes.to(tl.float16) - (2**WIDTH - 1) * 0.5
    return tl.reshape(centred, (TOKENS, PER * BYTES))


@triton.jit
def load_words(rows, start, nbytes, PADDED: tl.constexpr, FULL: tl.constexpr):
    """Units uint16 `[T, PADDED]` of a band of 4-bit planes."""
    column = tl.arange(0, PADDED)
    at = rows.to(tl.pointer_type(tl.uint16))[:, None] + (start // 2 + column)[None, :]
    if FULL:
        return tl.load(tl.max_contiguous(tl.multiple_of(at, (1, 16)), (1, 8)))
    return tl.load(at, mask=(column < nbytes // 2)[None, :], other=0)


@triton.jit
def load_columns(rows, start, nbytes, PADDED: tl.constexpr, FULL: tl.constexpr):
    """The same, `[PADDED, T]`: a transposed load goes into a matrix product without a detour, a transposed tensor not."""
    column = tl.arange(0, PADDED)
    at = rows.to(tl.pointer_type(tl.uint16))[None, :] + (start // 2 + column)[:, None]
    if FULL:
        return tl.load(tl.max_contiguous(tl.multiple_of(at, (16, 1)), (8, 1)))
    return tl.load(at, mask=(column < nbytes // 2)[:, None], other=0)


@triton.jit
def load_bytes(rows, start, nbytes, PADDED: tl.constexpr, FULL: tl.constexpr):
    """Bytes `[T, PADDED]` of a band of 2- or 1-bit planes."""
    column = tl.arange(0, PADDED)
    at = rows[:, None] + (start + column)[None, :]
    if FULL:
        return tl.load(tl.max_contiguous(tl.multiple_of(at, (1, 16)), (1, 16)))
    return tl.load(at, mask=(column < nbytes)[None, :], other=0)
