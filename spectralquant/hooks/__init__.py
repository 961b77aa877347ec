"""What the library sees of a transformers model: attention calls, rotary tables, cache calls."""
