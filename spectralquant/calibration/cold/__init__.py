"""Fitting the cold tier."""
