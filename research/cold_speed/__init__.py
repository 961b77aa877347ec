"""How fast packets come and go on a GPU, at shapes of real size."""
