"""Codes of fixed width after RoPE, read in place: the hot tier."""
