"""Suites that `sq gate --run` measures: small, deterministic, and sensitive to what breaks."""

from __future__ import annotations

SUITES = ("smoke", "gpu")
