"""How a cache holds blocks that have left the window, one tier a file."""
