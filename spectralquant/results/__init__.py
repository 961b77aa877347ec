"""Results files: rows and their provenance."""
