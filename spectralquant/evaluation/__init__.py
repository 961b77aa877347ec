"""Measuring what a compressed cache costs in quality, bytes and time (method.md sections 4 and 6)."""
