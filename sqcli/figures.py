"""How many digits a figure is shown with, wherever it is shown: tables, sentences, heatmaps and pages round alike."""

from __future__ import annotations

import math

DIGITS = {
    "payload_ratio": ".1f",
    "whole_cache_ratio": ".1f",
    "predicted_ratio": ".1f",
    "resident_bytes": ".1f",  # megabytes
    "delta_ppl": "+.3f",
    "kl_nats": ".4f",
    "top1": ".1f",  # per cent
    "needle": ".0f",  # per cent
    "encode_s": ".2f",  # seconds a thousand tokens
    "decode_s": ".2f",
    "bits": ".2f",  # a scalar
    "rank": ".0f",
    "mean_rank": ".1f",
    "energy": ".2f",  # per cent
    "entropy": ".2f",  # nats
}
LEAST_KL = 1e-4  # below, four decimals say little or nothing
SHARES = ("top1", "needle", "energy")


def shown(quantity: str, value: float | None) -> str:
    """A figure's text; a dash where there is none or it is no number (an uncompressed cache's ratio). Shares come as 0…1."""
    if value is None or not math.isfinite(value) or (quantity.endswith("ratio") and value > 1e6):
        return "–"
    if quantity == "resident_bytes":
        value /= 1e6
    if quantity == "kl_nats" and 0 < value < LEAST_KL:
        return f"{value:.1e}"
    return format(100 * value if quantity in SHARES else value, DIGITS[quantity])
