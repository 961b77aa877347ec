"""`sq study`: run one of the measurements behind the README's figures again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Data, Device, Dtype, Model, Offline, Quiet


def study(
    name: Annotated[str, typer.Argument(help="cold, domains or second-model.")],
    out: Annotated[Path, typer.Option(help="Results file to write (JSON).")],
    model: Model = "builtin:smollm2-135m",
    data: Data = "builtin:pydoc",
    other_data: Annotated[str, typer.Option(help="The second domain of `domains`.")] = "builtin:stdlib",
    steps: Annotated[int, typer.Option(help="Calibration windows.")] = 100,
    window: Annotated[int, typer.Option(help="Tokens per window.")] = 2048,
    windows: Annotated[int, typer.Option(help="Scored windows, taken from the end of the text.")] = 24,
    train_seconds: Annotated[float, typer.Option(help="Training time of second-model.")] = 90.0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the README states, on your model and text: writes one results file.

    cold: rate–distortion curve and TurboQuant on the same tokens. domains: profiles of two domains, each used on both.
    second-model: trains a small Qwen3 on --data (use builtin:stdlib and a GPU) and measures its curve.

    Example: [bold]sq study cold --data file:wiki.test.raw --out profiles/results/cold.json[/bold]
    """
    from spectralquant.errors import InputError, did_you_mean
    from spectralquant.files import write_json

    known = ("cold", "domains", "second-model")
    if name not in known:
        raise InputError(f"There is no study {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
    from spectralquant.sources.models import load_model
    from spectralquant.sources.text import load_text
    from spectralquant.sources.tokens import tokenize
    from sqcli.output import Output
    from sqcli.render.study import study_view

    output = Output(quiet=quiet)
    documents = load_text(data, offline=offline)
    if name == "second-model":
        return _second_model(documents, data, out, device, offline, train_seconds, output)
    loaded = load_model(model, device=device, dtype=dtype, offline=offline, report=output.note)
    text = tokenize(loaded.tokenizer, documents)
    with output.progress() as bar:
        if name == "cold":
            from spectralquant.studies.cold import ColdStudy, cold_study

            result = cold_study(loaded, text, ColdStudy(steps=steps, window=window, windows=windows), data, bar)
        else:
            from spectralquant.studies.domains import domain_study

            other = tokenize(loaded.tokenizer, load_text(other_data, offline=offline), 2 * (steps + windows) * window)
            result = domain_study(loaded, {data: text, other_data: other}, steps, window, windows, bar)
    write_json(out, result)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")


def _second_model(documents, data: str, out: Path, device: str, offline: bool, train_seconds: float, output) -> None:
    from transformers import AutoTokenizer

    from spectralquant.files import write_json
    from spectralquant.sources.builtin_model import builtin_model_folder
    from spectralquant.sources.models import pick_device
    from spectralquant.sources.tokens import tokenize
    from spectralquant.studies.second_model import second_model_study
    from sqcli.render.study import study_view

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_folder(offline=offline, report=output.note))
    text = tokenize(tokenizer, documents)
    with output.progress() as bar:
        result = second_model_study(tokenizer, text, data, pick_device(device), train_seconds, bar)
    write_json(out, result)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")
