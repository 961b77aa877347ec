"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from sqcli.config import take_config
from sqcli.typos import DEVICES, DTYPES, check_data, check_device, check_model, checked, completed, one_of

CONFIG_HELP = r"TOML file that gives defaults, a table per command: steps = 200 under \[calibrate]. Flags win."
MODEL_HELP = "builtin:smollm2-135m, builtin:gemma3-270m, a folder, a .gguf file, a hub id, or random:SHAPE (random weights, for timing), as random:llama-3.1-8b; with :layers=4 after it, 4 layers."
DATA_HELP = (
    "builtin:pydoc, builtin:stdlib, builtin:mix (four kinds), builtin:gate (never changes), file:PATH[:COLUMN] (text, json, jsonl, csv, parquet, packed or not, a folder or a "
    "glob), or hub:NAME, followed by [:config][:split] and [:column]. Repeat it to mix texts; =3 after a text is its weight."
)
DEFAULT_DATA = ("builtin:pydoc",)


def _models() -> list[str]:
    from spectralquant.models.builtin.table import BUILTIN_MODELS

    return list(BUILTIN_MODELS)


def _texts() -> list[str]:
    from spectralquant.text.read import BUILTIN

    return list(BUILTIN)


Model = Annotated[
    str, typer.Option("--model", "-m", help=MODEL_HELP, callback=checked(check_model), **completed(_models))
]
ProfileModel = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Model; default: the profile's.", callback=checked(check_model), **completed(_models)
    ),
]
Data = Annotated[
    list[str], typer.Option("--data", "-d", help=DATA_HELP, callback=checked(check_data), **completed(_texts))
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:N, or all: layers over all GPUs, to calibrate.",
        callback=checked(check_device),
        **completed(DEVICES),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto (float32 on CPU, bfloat16 on GPU), float32, bfloat16 or float16.", **one_of("--dtype", DTYPES)
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]
Json = Annotated[str | None, typer.Option("--json", help="Write results as JSON to this file (- = stdout alone).")]
Csv = Annotated[str | None, typer.Option("--csv", help="Write the rows as CSV to this file.")]
Svg = Annotated[str | None, typer.Option("--svg", help="Write a picture of the terminal output to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.")]
Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help=CONFIG_HELP, is_eager=True, callback=take_config)
]
Quotable = Annotated[
    bool,
    typer.Option("--quotable", help="Refuse to begin where the result could not be quoted: not a clean commit."),
]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with an interrupted run of the same command (see what it says on Ctrl-C)."),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Only the I-th of N parts, to share the work of one command among N processes, on a GPU each; when all have ended, --resume puts the rows together.",
    ),
]
