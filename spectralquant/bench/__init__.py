"""Timing kernels and decode steps, and predicting them."""
