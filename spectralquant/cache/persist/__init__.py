"""Caches as packets and files."""
