"""The cold tier: entropy-coded blocks over all layers."""
