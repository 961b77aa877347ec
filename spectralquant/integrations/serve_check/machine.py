"""What the engine is started with on this machine, and the folder of a model for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spectralquant.errors import InputError
from spectralquant.models.builtin.folder import builtin_folder
from spectralquant.models.builtin.table import PREFIX

CPU_CACHE_GIB = "1"


def model_folder(model: str, *, offline: bool, report: Callable[[str], None]) -> Path:
    """The folder of a built-in model, or of one that lies on this machine.

    Raises:
        InputError: not a folder: the engine and the tier must see the same files.
        SourceError: a built-in model cannot be fetched.
    """
    if model.startswith(PREFIX):
        return builtin_folder(model, offline=offline, report=report)
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise InputError(f"{model} is not a folder with a config.json. Give a model's folder, or builtin:smollm2-135m.")
    return folder


def engine_arguments(max_model_len: int, eager: bool) -> tuple[dict[str, Any], bool]:
    """Arguments of `vllm.LLM`, and whether there is a GPU. On a CPU, also the environment variables that its build needs."""
    import torch

    gpu = torch.cuda.is_available()
    if find_spec("flashinfer") is None:
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    arguments: dict[str, Any] = {"max_model_len": max_model_len, "enforce_eager": eager, "dtype": "bfloat16"}
    if not gpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    return arguments, gpu
