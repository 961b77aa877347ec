"""Methods that drop tokens, one a file."""
