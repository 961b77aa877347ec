"""What a profile's sidecar says about its tensors, and whether it makes sense. Needs no torch."""

from __future__ import annotations

from spectralquant.errors import ProfileError
from spectralquant.models.schema import ModelIdentity
from spectralquant.profile.schema import ProfileSidecar

TIER_NAMES = ("cold", "warm", "hot")
FIGURES = ("payload_ratio", "whole_cache_ratio", "delta_ppl", "base_ppl", "kl_nats", "top1", "n_tokens", "n_windows")
MOST = 1 << 20
HEX = frozenset("0123456789abcdef")


def check_sidecar(sidecar: ProfileSidecar, file: object) -> None:
    """Raise `ProfileError` unless the sidecar's figures fit each other."""
    m = sidecar.model
    hashed = len(sidecar.tensors_sha256) == 64 and set(sidecar.tensors_sha256) <= HEX
    good = {
        "layers, heads or head_dim": max(m.layers, m.heads, m.kv_heads, m.head_dim) <= MOST,
        "heads and kv_heads": m.heads % m.kv_heads == 0,
        "rotary": len(m.rotary) == m.layers,
        "tensors_sha256": hashed,
        "text": sidecar.text.window > 0 and sidecar.text.tokens >= 0,
        "tiers": set(sidecar.tiers) <= set(TIER_NAMES),
        "measured figures": all(
            isinstance((tier.measured or {}).get(name, 0), (int, float, type(None)))
            for tier in sidecar.tiers.values()
            for name in FIGURES
        ),
        "the cold tier's step": "cold" not in sidecar.tiers or (sidecar.tiers["cold"].step or 0) > 0,
    }
    wrong = [name for name, fits in good.items() if not fits]
    if wrong:
        raise ProfileError(f"{file} is damaged: {', '.join(wrong)} cannot be right. Calibrate again.")


def head_shapes(m: ModelIdentity) -> dict[str, tuple[int, ...]]:
    """Shapes of `HeadSpectra` by name."""
    heads = (2, m.layers, m.kv_heads)
    return {
        "basis": (*heads, m.head_dim, m.head_dim),
        "synthesis": (*heads, m.head_dim, m.head_dim),
        "gain": (*heads, m.head_dim),
        "variance": (*heads, m.head_dim),
        "entropy": (m.layers, m.heads),
        "rank": heads,
        "bits": heads,
    }
