"""How the files under profiles/results are made anew, and which of them are stale."""
