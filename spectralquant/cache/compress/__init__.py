"""How blocks leave the exact window."""
