"""The hot tier as an attention backend of vLLM: codes in the engine's own pages."""
