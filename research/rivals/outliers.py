"""Do rivals survive key channels that are much larger than the rest, as biases make them in some families (Qwen2.5)?

A pair of key channels that RoPE turns together is made `FACTOR` times larger in every layer and head, the queries' the same
factor smaller: every attention score, and so the model, is what it was. Only what a codec sees has changed.

    python -m research.rivals.outliers --data wiki.test.raw --out profiles/results/turboquant-outliers.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from research.windows import scored_windows
from spectralquant.evaluation.compare import Comparison, Protocol
from spectralquant.files import write_json
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import MethodSpec, get, parse
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.results.quality import ComparedRow
from spectralquant.results.schema import Results
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

CONTEXT = 2048
FACTOR = 30.0
WINDOWS = 4
MODEL = "builtin:smollm2-135m"


@torch.no_grad()
def enlarge_keys(loaded: LoadedModel, factor: float) -> LoadedModel:
    """The same model of a Llama architecture with its slowest pair of key channels `factor` times larger.

    The pair is the last of either half of a head: RoPE turns channel i with channel i + D/2.
    """
    dim, group = loaded.geometry.head_dim, loaded.geometry.group
    for layer in loaded.model.model.layers:
        keys, queries = layer.self_attn.k_proj.weight, layer.self_attn.q_proj.weight
        for channel in (dim // 2 - 1, dim - 1):
            keys.view(-1, dim, keys.shape[1])[:, channel] *= factor
            queries.view(-1, group, dim, queries.shape[1])[:, :, channel] /= factor
    return loaded


def groups() -> list[list[MethodSpec]]:
    """What is compared: TurboQuant without outlier channels, with the paper's, and with few in 8 bits; KIVI; FP8."""
    return [parse("none"), parse("turboquant"), [get("kivi", bits=4), get("kivi", bits=2)], parse("fp8")]


def study(data: Path, device: str) -> Results:
    """Rows of the model as it is and of the model with large key channels, on the last windows of a text's report part."""
    rows: list[ComparedRow] = []
    for name, factor in ((MODEL, 1.0), (f"{MODEL}, one pair of key channels x {FACTOR:g}", FACTOR)):
        loaded = enlarge_keys(load_model(MODEL, device=device, dtype="float32"), factor)
        text = tokenize(loaded.tokenizer, load_text(f"file:{data}"))
        windows = scored_windows(text, steps=0, window=CONTEXT, count=WINDOWS)
        protocol = Protocol("outliers", 0, 0, True)
        result = Comparison(MethodContext(loaded), {CONTEXT: windows}, protocol, data.name).run(groups())
        rows += [row.updated(model=name) for row in result.rows]
    result.rows, result.failed = rows, [row for row in rows if row.failed]
    return result


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Rivals on key channels that are much larger than the rest.")
    parser.add_argument("--data", type=Path, required=True, help="a text file, as wiki.test.raw")
    parser.add_argument("--out", type=Path, required=True, help="the results file")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    write_json(given.out, study(given.data, given.device).as_json())


if __name__ == "__main__":
    main()
