"""Generation at the kernels' speed: whole decode steps as CUDA graphs over a cache of fixed size."""
