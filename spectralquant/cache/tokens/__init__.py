"""The tokens of a cache, by sequence, layer and group of layers."""
