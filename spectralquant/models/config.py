"""A model's configuration, and its shape, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spectralquant.errors import SourceError
from spectralquant.models.builtin.folder import builtin_folder
from spectralquant.models.builtin.table import PREFIX as BUILTIN
from spectralquant.models.quiet import first_line, quiet_transformers
from spectralquant.models.random_model import PREFIX, random_config
from spectralquant.models.shapes import ModelShape, parse_shape


def load_config(spec: str, *, offline: bool = False) -> Any:
    """A model's transformers configuration, without its weights.

    Raises:
        SourceError: there is no such model, or it cannot be reached.
    """
    if spec.startswith(PREFIX):
        return random_config(parse_shape(spec.removeprefix(PREFIX)))
    with quiet_transformers():
        try:
            folder = builtin_folder(spec, offline=offline) if spec.startswith(BUILTIN) else spec
            return AutoConfig.from_pretrained(folder, local_files_only=offline or Path(folder).is_dir())
        except SourceError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, … for bad folders
            raise SourceError(f"The configuration of {spec!r} cannot be read: {first_line(error)}") from error


def shape_of_model(spec: str, *, offline: bool = False) -> ModelShape:
    """The shape of a built-in model, a folder or a hub id, from its configuration alone.

    Raises:
        SourceError: there is no such model, or it cannot be reached.
    """
    return ModelShape.of_config(spec, load_config(spec, offline=offline))


def parameter_count(config: Any) -> int:
    """Numbers in a model's weights, counted without making them; tied ones count once."""
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())
