"""From tensors to bytes and back: project, quantize, entropy-code, pack."""
