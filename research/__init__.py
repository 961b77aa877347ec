"""Studies that write `profiles/results/`, run from the repository."""
