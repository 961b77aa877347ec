"""Tables of what takes how long."""
