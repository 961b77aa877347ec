"""Between a cache's tokens and spectral coefficients: what lies beside the large matrix products of the cold tier."""

from sqkernels.spectral_rows.api import TokenSlots, Turns, dequantize, gather_rows, quantize, row_energy, store_rows

__all__ = ["TokenSlots", "Turns", "dequantize", "gather_rows", "quantize", "row_energy", "store_rows"]
