"""Calibration: capture, statistics, spectrum, rank, bits, codebooks (method.md section 2)."""
