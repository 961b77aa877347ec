"""Codes of fixed width before RoPE: the warm tier."""
