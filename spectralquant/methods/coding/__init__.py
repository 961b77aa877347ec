"""Methods that code keys and values, one a file."""
