"""Loading a GGUF file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from spectralquant.errors import SourceError
from spectralquant.known_faults import gguf_fault
from spectralquant.models.gguf.header import gguf_metadata
from spectralquant.models.quiet import first_line
from spectralquant.text.bos import begin_with_bos


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
        raise SourceError(f"{path} cannot be read as a GGUF model ({first_line(error)}). Check the file.") from error
    if header.get("tokenizer.ggml.add_bos_token"):
        begin_with_bos(tokenizer, header.get("tokenizer.ggml.bos_token_id"), str(path))
    return model, tokenizer
