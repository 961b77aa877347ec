"""Calibrating a model: a calibration run whose tiers the evaluation harness measures."""
