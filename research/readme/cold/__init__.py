"""The cold tier's speed in the docs: the coder alone, and packets of real size."""
