"""Where a result comes from: the code that made it, and whether it may be quoted."""
