"""Where models come from, and what their caches look like."""
