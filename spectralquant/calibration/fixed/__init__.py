"""Fitting the warm and hot tiers."""
