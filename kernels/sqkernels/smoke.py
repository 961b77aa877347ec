"""`python -m sqkernels.smoke`: does Triton work here? On a GPU if there is one, else under the interpreter."""

from __future__ import annotations

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402 (the interpreter is chosen before the import)
import triton.language as tl  # noqa: E402


@triton.jit
def _unpack(packed, out, n, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    word = tl.load(packed + index // 8, mask=inside, other=0)
    tl.store(out + index, (word >> (4 * (index % 8))) & 0xF, mask=inside)


def main() -> None:
    """Unpack random nibbles and compare with torch; raises on a wrong result."""
    n = 1000
    generator = torch.Generator().manual_seed(0)
    nibbles = torch.randint(0, 16, (n,), generator=generator, dtype=torch.int64)
    words = (nibbles.view(-1, 8) << (4 * torch.arange(8))).sum(1).to(torch.int32).to(DEVICE)
    out = torch.full((n,), -1, dtype=torch.int32, device=DEVICE)
    _unpack[(triton.cdiv(n, 128),)](words, out, n, BLOCK=128)
    if not torch.equal(out.cpu().long(), nibbles):
        raise SystemExit("a Triton kernel gave a wrong result")
    where = torch.cuda.get_device_name(0) if DEVICE == "cuda" else "interpreter (no GPU)"
    print(f"triton {triton.__version__} on {where}")


if __name__ == "__main__":
    main()
