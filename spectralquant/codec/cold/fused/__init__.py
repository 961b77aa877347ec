"""Coded blocks and the tensors of a cache, without anything in between."""
