"""The device: its peaks, its state, and its clock."""
