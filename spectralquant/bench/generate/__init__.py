"""`model.generate` over dense and compressed caches: tokens a second, time to first token, memory, stalls."""
