"""Loading a model and its tokenizer from a built-in name, a local folder, a GGUF file or a hub id."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from spectralquant.errors import InputError, SourceError, UnsupportedModelError, did_you_mean
from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.wrappers import model_device
from spectralquant.models.builtin.folder import builtin_folder
from spectralquant.models.builtin.table import BUILTIN_MODELS
from spectralquant.models.builtin.table import PREFIX as BUILTIN
from spectralquant.models.gguf.load import load_gguf
from spectralquant.models.probe import probe_geometry, refuse_unsupported
from spectralquant.models.quiet import first_line, quiet_transformers
from spectralquant.models.random_model import PREFIX, random_model
from spectralquant.models.spread import ALL, gpu_count
from spectralquant.text.bos import begin_with_bos

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEED_BOS = "gemma"
AUTO_CLASSES = (AutoModelForCausalLM, AutoModelForImageTextToText)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use, its tokenizer, its name as the user gave it, and its cache geometry."""

    name: str
    model: nn.Module
    tokenizer: Any
    geometry: CacheGeometry

    @property
    def device(self) -> torch.device:
        return model_device(self.model)


def pick_device(name: str, *, absent: bool = False) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:n` or `all` (the first of them) to a device. absent: a GPU that this machine lacks will do, as nothing is computed.

    Raises:
        InputError: unknown name, or no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == ALL:
        if not absent and not torch.cuda.is_available():
            raise InputError(f"--device {ALL}: this machine shows no GPUs. Use --device cpu.")
        return torch.device("cuda", 0)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise InputError(f"--device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, …, all")
    if not absent and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices. Use --device cpu, "
            "or run `sq doctor` to see what is missing."
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU and bfloat16 on a GPU.

    Raises:
        InputError: unknown name.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise InputError(f"--dtype {name!r} is not one of auto, {', '.join(DTYPES)}.{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def load_model(
    spec: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """Load `builtin:NAME`, a folder, a `.gguf` file, a hub id or `random:SHAPE`, in evaluation mode, and probe its cache.

    With `device="all"` the layers of a folder's, hub's or random model lie on all GPUs of the machine.

    Raises:
        SourceError: not found, not readable, not reachable.
        UnsupportedModelError: the architecture has no per-head keys and values that could be coded.
    """
    target = pick_device(device)
    kind = pick_dtype(dtype, target)
    spread = device == ALL and gpu_count() > 1
    with quiet_transformers(report):
        if spec.startswith(BUILTIN):
            model, tokenizer = _load_folder(
                builtin_folder(spec, offline=offline, report=report), kind, spread, local=True
            )
        elif spec.startswith(PREFIX):
            model, tokenizer = random_model(spec, kind, target, spread=spread)
        elif spec.lower().endswith(".gguf"):
            if not Path(spec).is_file():
                raise SourceError(f"There is no GGUF file {spec}. Check the path.")
            if spread:
                raise InputError(
                    f"--device {ALL}: a GGUF file is read onto one device. Use --device cuda, or a folder."
                )
            model, tokenizer = load_gguf(Path(spec), dtype=kind)
        elif Path(spec).is_dir():
            model, tokenizer = _load_folder(Path(spec), kind, spread, local=True)
        elif spec.startswith((".", "/", "~")) or spec.count("/") > 1 or not spec.strip():
            raise SourceError(
                f"There is no model folder {spec!r}. Pass a folder with config.json and safetensors, "
                f"a .gguf file, a hub id (owner/name), or {', '.join(BUILTIN_MODELS)}."
            )
        else:
            model, tokenizer = _load_hub(spec, kind, spread, offline)
    model = model.eval() if spread and hasattr(model, "hf_device_map") else model.to(target).eval()
    return LoadedModel(spec, model, tokenizer, probe_geometry(model))


def _load_folder(folder: str | Path, dtype: torch.dtype, spread: bool, *, local: bool) -> tuple[nn.Module, Any]:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=local)
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{folder} is an encoder-decoder model ({config.model_type}): its cross-attention cache is not "
                "covered by the codec. Use a decoder-only model."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local)
        places = {"device_map": "balanced"} if spread else {}
        model = _auto_class(config).from_pretrained(folder, dtype=dtype, local_files_only=local, **places)
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, … for bad folders
        raise SourceError(f"Model {str(folder)!r} cannot be loaded: {first_line(error)}") from error
    refuse_unsupported(model)
    if config.model_type.startswith(NEED_BOS) and tokenizer.bos_token_id is not None:
        begin_with_bos(tokenizer, tokenizer.bos_token_id, str(folder))
    return model, tokenizer


def _auto_class(config: Any) -> Any:
    """Language models, and wrappers for images and text whose decoder is one (Mistral 3, Qwen-VL, LLaVA).

    Raises:
        UnsupportedModelError: neither.
    """
    for auto in AUTO_CLASSES:
        if type(config) in auto._model_mapping:
            return auto
    raise UnsupportedModelError(
        f"{config.model_type} is neither a language model nor a wrapper of one for images and text, as far as transformers "
        f"{transformers.__version__} knows. If it has a text decoder, load that yourself and pass the loaded model to "
        "spectralquant.calibrate and SpectralCache."
    )


def _load_hub(name: str, dtype: torch.dtype, spread: bool, offline: bool) -> tuple[nn.Module, Any]:
    try:
        return _load_folder(name, dtype, spread, local=offline or bool(os.environ.get("HF_HUB_OFFLINE")))
    except SourceError as error:
        raise SourceError(
            f"{error} Check the hub id, the network (or drop --offline), and your access to the model; "
            f"a local folder or {', '.join(BUILTIN_MODELS)} needs no hub.{did_you_mean(name, BUILTIN_MODELS)}"
        ) from error
