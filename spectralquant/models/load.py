"""Loading a model and its tokenizer from a built-in name, a local folder, a GGUF file or a hub id."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
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
from spectralquant.known_faults import gguf_fault
from spectralquant.models.builtin.folder import builtin_folder
from spectralquant.models.builtin.table import BUILTIN_MODELS
from spectralquant.models.builtin.table import PREFIX as BUILTIN
from spectralquant.models.gguf_header import gguf_metadata
from spectralquant.models.probe import probe_geometry, refuse_unsupported
from spectralquant.models.random_model import PREFIX, random_config, random_model
from spectralquant.models.shapes import parse_shape
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


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:n` to a device.

    Raises:
        InputError: unknown name, or no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise InputError(f"--device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, …")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
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

    Raises:
        SourceError: not found, not readable, not reachable.
        UnsupportedModelError: the architecture has no per-head keys and values that could be coded.
    """
    target = pick_device(device)
    kind = pick_dtype(dtype, target)
    with _quiet_transformers():
        if spec.startswith(BUILTIN):
            model, tokenizer = _load_folder(builtin_folder(spec, offline=offline, report=report), kind, local=True)
        elif spec.startswith(PREFIX):
            model, tokenizer = random_model(spec, kind, target)
        elif spec.lower().endswith(".gguf"):
            if not Path(spec).is_file():
                raise SourceError(f"There is no GGUF file {spec}. Check the path.")
            model, tokenizer = load_gguf(Path(spec), dtype=kind)
        elif Path(spec).is_dir():
            model, tokenizer = _load_folder(Path(spec), kind, local=True)
        elif spec.startswith((".", "/", "~")) or spec.count("/") > 1 or not spec.strip():
            raise SourceError(
                f"There is no model folder {spec!r}. Pass a folder with config.json and safetensors, "
                f"a .gguf file, a hub id (owner/name), or {', '.join(BUILTIN_MODELS)}."
            )
        else:
            model, tokenizer = _load_hub(spec, kind, offline)
    model = model.to(target).eval()
    return LoadedModel(spec, model, tokenizer, probe_geometry(model))


def load_config(spec: str, *, offline: bool = False) -> Any:
    """A model's transformers configuration, without its weights.

    Raises:
        SourceError: there is no such model, or it cannot be reached.
    """
    if spec.startswith(PREFIX):
        return random_config(parse_shape(spec.removeprefix(PREFIX)))
    with _quiet_transformers():
        try:
            folder = builtin_folder(spec, offline=offline) if spec.startswith(BUILTIN) else spec
            return AutoConfig.from_pretrained(folder, local_files_only=offline or Path(folder).is_dir())
        except SourceError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, … for bad folders
            raise SourceError(f"The configuration of {spec!r} cannot be read: {_first_line(error)}") from error


def load_gguf(path: Path, *, dtype: str | torch.dtype) -> tuple[nn.Module, Any]:
    """Load a GGUF file with its weights dequantized to `dtype`.

    Raises:
        SourceError: damaged, or of an architecture that this transformers reads wrongly.
    """
    header = gguf_metadata(path)
    if (fault := gguf_fault(str(header.get("general.architecture")))) is not None:
        raise SourceError(f"{path} is not used: {fault}")
    options: dict[str, Any] = {"gguf_file": path.name, "dtype": dtype}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(path.parent, **options)
    except Exception as error:  # the gguf reader raises almost anything on damaged files
        raise SourceError(f"{path} cannot be read as a GGUF model ({_first_line(error)}). Check the file.") from error
    if header.get("tokenizer.ggml.add_bos_token"):
        begin_with_bos(tokenizer, header.get("tokenizer.ggml.bos_token_id"), str(path))
    return model, tokenizer


def _load_folder(folder: str | Path, dtype: torch.dtype, *, local: bool) -> tuple[nn.Module, Any]:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=local)
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{folder} is an encoder-decoder model ({config.model_type}): its cross-attention cache is not "
                "covered by the codec. Use a decoder-only model."
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=local)
        model = _auto_class(config).from_pretrained(folder, dtype=dtype, local_files_only=local)
    except UnsupportedModelError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError, … for bad folders
        raise SourceError(f"Model {str(folder)!r} cannot be loaded: {_first_line(error)}") from error
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


def _load_hub(name: str, dtype: torch.dtype, offline: bool) -> tuple[nn.Module, Any]:
    try:
        return _load_folder(name, dtype, local=offline or bool(os.environ.get("HF_HUB_OFFLINE")))
    except SourceError as error:
        raise SourceError(
            f"{error} Check the hub id, the network (or drop --offline), and your access to the model; "
            f"a local folder or {', '.join(BUILTIN_MODELS)} needs no hub.{did_you_mean(name, BUILTIN_MODELS)}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".") + "."


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
