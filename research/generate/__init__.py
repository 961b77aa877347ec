"""Beside `sq profile --generate`: hardware counters, and what an index costs."""
