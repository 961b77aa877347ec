"""Between a cache's tokens and spectral coefficients: what lies beside the large matrix products of the cold tier."""

from sqkernels.spectral_rows.api import dequantize, gather_rows, quantize, row_energy, store_rows
from sqkernels.spectral_rows.layout import LayerTensors, TokenSlots, Turns

__all__ = [
    "LayerTensors",
    "TokenSlots",
    "Turns",
    "dequantize",
    "gather_rows",
    "quantize",
    "row_energy",
    "store_rows",
]
