"""Code single tokens into slots of pages, as serving engines hand them over."""

from sqkernels.spectral_slots.api import page_bytes, spectral_slots

__all__ = ["page_bytes", "spectral_slots"]
