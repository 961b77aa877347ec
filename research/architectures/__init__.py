"""Which architectures work, and which are refused."""
