"""Range coding of many blocks at once."""
