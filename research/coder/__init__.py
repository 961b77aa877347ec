"""The entropy coder alone: sizes and times."""
