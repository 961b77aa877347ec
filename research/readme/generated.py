"""What the README's `sq generate` line gains."""

from __future__ import annotations

from research.readme.tools import load


def generated() -> str:
    """One sentence: tokens held, bytes, and how many times smaller than 16 bits."""
    result = load("generate-smollm2-cpu")
    (row,) = result["rows"]
    return (
        f"That `generate` line, with a manual of {row['prompt_tokens']:,} tokens: {row['resident_bytes'] / 1e6:.1f} MB for "
        f"{row['tokens']:,} tokens, {row['resident_ratio']:.1f} times smaller than in 16 bits "
        f"({row['fp16_bytes'] / 1e6:.1f} MB; {row['exact_tokens']} tokens are exact, in float32 on a CPU). With a prompt below 256 "
        "tokens nothing is compressed."
    )
