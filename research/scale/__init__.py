"""Calibration of models of real size: time, memory, several GPUs, and what steps, metric and form of the bases are worth."""
