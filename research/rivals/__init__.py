"""Studies of rivals' settings."""
