"""SpectralQuant in vLLM: `SpectralConnector`, which stores and restores prefixes, on GPUs and on the CPU build.

Nothing here imports numba or llvmlite: vLLM's CPU build rebinds kernels in every loaded module and fails on theirs.
"""
