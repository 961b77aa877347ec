"""Codes of keys and values as rows: one row a token and head, read in place by the attention kernels."""

from sqkernels.common.layout import PAGE, RowLayout
from sqkernels.common.matrices import LinearCode, RowMatrices
from sqkernels.common.pages import ExactTokens, RowPages

__all__ = ["PAGE", "ExactTokens", "LinearCode", "RowLayout", "RowMatrices", "RowPages"]
