"""What the command line refuses before a model, a profile or a text is read."""
