"""Whole KV caches: packing a prompt into a packet and getting a transformers cache back."""
