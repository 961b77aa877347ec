"""The `sq` command line: parse, call, render. No mathematics, and no torch at import time."""
