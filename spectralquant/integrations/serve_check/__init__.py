"""Does a tier pay on this machine? The engine with and without it, the same prompts, in processes of their own."""
