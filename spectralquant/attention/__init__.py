"""How the library sees, and takes part in, a transformers model's attention."""
