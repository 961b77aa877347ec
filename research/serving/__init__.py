"""What serving with the tier gains: on a CPU with the built-in model, on a GPU with the shape of an 8B model too."""
