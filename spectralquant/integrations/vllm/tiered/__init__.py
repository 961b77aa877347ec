"""Parts of the tier behind vLLM's own in CPU memory (`vllm.tier`)."""
