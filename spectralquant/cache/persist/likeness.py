"""Whether a packed text is like the one that its profile was calibrated on, told from its bytes."""

from __future__ import annotations

import warnings

from spectralquant.codec.packet import SpectralPacket
from spectralquant.errors import UnlikeTextWarning
from spectralquant.profile.model import CalibrationProfile

ENOUGH_TOKENS = 512
MANY_MORE = 1.25  # with the built-in model: 1.0 to 1.1 for text of its kind, 1.35 for code, 1.6 for an encyclopaedia


def bytes_over_held_out(packet: SpectralPacket, profile: CalibrationProfile) -> float | None:
    """Coded bytes a token over those of the profile's held-out text: 1 for text of its kind, 1.7 and more for another.

    None where the two cannot be compared: few coded tokens, another step, or a profile that was not measured.
    """
    measured = profile.sidecar.tiers["cold"].measured if "cold" in profile.sidecar.tiers else None
    expected = (measured or {}).get("payload_ratio")
    if not expected or packet.header.step_scale != 1 or packet.coded_tokens < ENOUGH_TOKENS:
        return None
    return expected * packet.coded_bytes / packet.coded_fp16_bytes


def warn_of_unlike_text(packet: SpectralPacket, profile: CalibrationProfile) -> None:
    """Warn of a text whose bytes say that the calibration did not know its kind."""
    share = bytes_over_held_out(packet, profile)
    if share is not None and share > MANY_MORE:
        warnings.warn(
            f"This text takes {share:.1f} times the bytes a token of the text that the profile was calibrated on "
            f"({profile.sidecar.text.source}): it is of another kind, and what it loses was not measured. Calibrate on text "
            "like it (sq calibrate --data), or mix it in.",
            UnlikeTextWarning,
            stacklevel=3,
        )
