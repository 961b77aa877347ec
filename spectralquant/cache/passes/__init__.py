"""Where forward passes begin and end."""
