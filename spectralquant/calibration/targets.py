"""What an allocation is solved for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spectralquant.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Target:
    """A goal: `quantity` is ratio (payload, fp16 over coded), bits (per scalar), dppl, kl or error (nats per token).

    An error is a KL that no text is to exceed: blocks are held to it one by one (see `codec.cold.complement`).
    """

    quantity: str
    value: float

    def __str__(self) -> str:
        return f"{self.quantity}={self.value:g}"

    @property
    def bits(self) -> float | None:
        """Bits per scalar, where the goal fixes them."""
        return {"ratio": 16 / self.value, "bits": self.value}.get(self.quantity)


def Ratio(value: float) -> Target:  # noqa: N802 (reads as a type where it is used: target=Ratio(33))
    """Payload ratio: fp16 bytes over coded bytes."""
    return parse_target(f"ratio={value}")


def Bits(value: float) -> Target:  # noqa: N802
    """Bits per scalar."""
    return parse_target(f"bits={value}")


def DeltaPPL(value: float) -> Target:  # noqa: N802
    """Increase in perplexity on held-out calibration text, at most."""
    return parse_target(f"dppl={value}")


def KL(value: float) -> Target:  # noqa: N802
    """KL divergence from the exact model in nats per token on held-out calibration text, at most."""
    return parse_target(f"kl={value}")


def Error(value: float) -> Target:  # noqa: N802
    """KL divergence in nats per token that no text is to exceed; of the cold tier alone."""
    return parse_target(f"error={value}")


LIMITS = {"ratio": (1.5, 1000.0), "bits": (0.016, 8.0), "dppl": (0.0, 100.0), "kl": (0.0, 10.0), "error": (0.0, 10.0)}


def parse_target(text: str) -> Target:
    """`ratio=33`, `bits=2`, `dppl=0.18`, `kl=0.01` or `error=0.01`.

    Raises:
        InputError: unknown quantity, not a number, or out of range.
    """
    name, _, number = text.partition("=")
    name = name.strip()
    if name not in LIMITS:
        raise InputError(
            f"--target {text!r}: the quantity must be one of {', '.join(LIMITS)}, as in ratio=33."
            f"{did_you_mean(name, LIMITS)}"
        )
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"--target {text!r}: {number!r} is not a number.") from None
    low, high = LIMITS[name]
    above = f"at least {low:g}" if low > 0 else "above 0"
    if not (math.isfinite(value) and low <= value <= high and value > 0):
        raise InputError(f"--target {text!r}: {name} must be {above}, and {high:g} at most.")
    return Target(name, value)
