"""README blocks about rivals: every method at every budget, claims, tasks, and keys with huge channels."""
