"""How attention reads a compressed cache."""
