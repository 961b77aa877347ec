"""Models that come from the Python package index: no model hub is needed."""
