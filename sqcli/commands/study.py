"""`sq study`: run one of the measurements behind the README's figures again."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sqcli.options import DEFAULT_DATA, Data, Device, Dtype, Model, Offline, Quiet

if TYPE_CHECKING:
    from spectralquant.models.load import LoadedModel
    from spectralquant.profile.model import CalibrationProfile
    from spectralquant.text.mix import MixedText
    from spectralquant.text.read import TextSource
    from sqcli.output import Output

STUDIES = (
    "cold",
    "domains",
    "second-model",
    "packet",
    "tiers",
    "cache",
    "quality",
    "index",
    "kernels",
    "gate",
    "shapes",
    "coder",
    "cold-speed",
    "architectures",
    "calibrate-scale",
)
WITH_PROFILE = ("packet", "cache", "index", "coder", "cold-speed")
TWO_TEXTS = ("domains",)
DEFAULT_OTHER = ("builtin:stdlib",)
READ_TOKENS = 4_000_000


def study(
    name: Annotated[str, typer.Argument(help=f"{', '.join(STUDIES[:-1])} or {STUDIES[-1]}.")],
    out: Annotated[Path, typer.Option(help="Results file to write (JSON).")],
    model: Model = "builtin:smollm2-135m",
    data: Data = DEFAULT_DATA,
    other_data: Annotated[
        list[str], typer.Option(help="The second domain of `domains`, or texts of `quality`, as --data.")
    ] = DEFAULT_OTHER,
    in_mix: Annotated[
        list[str] | None, typer.Option(help="Texts of `quality` whose kinds --data holds (which they are not from).")
    ] = None,
    more: Annotated[list[str] | None, typer.Option(help="More texts of `quality`, for its bound alone.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Parts of `quality`: home, general, texts, or texts:2/6.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", "-p", help="The profile of `packet`, `cache` and `index`.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 100,
    window: Annotated[int, typer.Option(min=1, help="Tokens per window.")] = 2048,
    windows: Annotated[int, typer.Option(min=1, help="Scored windows, taken from the end of the text.")] = 24,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Models of `shapes`, once each. Default: 8B, 7B, and the 70B shape with four layers."),
    ] = None,
    keep_sample: Annotated[
        Path | None,
        typer.Option(help="Where `cold-speed` keeps what it takes from the model, to run without it elsewhere."),
    ] = None,
    train_seconds: Annotated[float, typer.Option(min=0, help="Training time of `second-model`.")] = 75.0,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Parts of `calibrate-scale` to measure anew; others in --out are kept. Default: what is missing there."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Measure what the README states, on your model and text: writes one results file.

    cold: rate–distortion curve and TurboQuant on the same tokens. domains: profiles of two domains, each used on both.
    second-model: trains a small Qwen3 on --data (use builtin:stdlib and a GPU) and measures its curve. packet: time to
    decode a prompt's packet against computing its prefill again. tiers: hot, warm and cold on held-out text, and the
    bytes real caches hold. cache: memory of whole processes and time per token, for every tier of --profile. quality:
    own profiles of the first --data; a general one of all --data with a bound on the error, on --in-mix, --other-data and --more
    text. Its parts are files beside --out, and those that are there are not made again. index: quality when a part of the hot codes is read, by the share selected.
    kernels: launch settings of the attention kernels (needs a GPU). gate: how often the timing rule of `sq gate` errs. shapes: do
    models of real size (random weights) load, calibrate and generate from every tier; time and memory of each step, and
    exit code 1 where one fails. Give it --dtype bfloat16 --steps 2 --window 384. coder: sizes and speed of the entropy coder
    alone on symbols of --profile, at shapes of real size on a GPU, and 10,000 random blocks there and back. cold-speed: packets of
    real size to ready keys and values and back on a GPU, against prefill and other coders. architectures: small
    random models of every kind of decoder that transformers has: each right or refused with a reason, else exit code 1; about
    three minutes on a CPU. calibrate-scale: time, peak memory and plan of calibrating an 8B shape on one GPU, on a small card and on
    several; and what metric, form of the bases and --steps are worth on --model.

    Example: [bold]sq study cold --data file:wiki.test.raw --out profiles/results/cold.json[/bold]
    """
    from spectralquant.errors import InputError, did_you_mean
    from spectralquant.files import write_json

    if name not in STUDIES:
        raise InputError(f"There is no study {name!r}; there are {', '.join(STUDIES)}.{did_you_mean(name, STUDIES)}")
    if find_spec("research") is None:
        raise InputError(
            "Studies are not part of the installed package. Run them from a checkout of the repository (pip install -e .)."
        )
    if name in WITH_PROFILE and profile is None:
        raise InputError(f"The {name} study needs --profile, as in --profile profiles/demo.")
    from spectralquant.text.read import open_sources
    from sqcli.output import Output
    from sqcli.terminal.study import study_view

    output = Output(quiet=quiet, writes={"--out": out})
    if name == "shapes":
        _shapes(shape, (steps, window), device, dtype, _one_text(data), out, output)
        return
    if name == "architectures":
        _architectures(out, output)
        return
    if name == "calibrate-scale":
        _calibrate_scale(part, model, data, (steps, window, windows), device, dtype, offline, out, output)
        return
    if name in ("kernels", "gate"):
        result = _kernels(device, output) if name == "kernels" else _gate(output)
        write_json(out, result)
        output.show(*study_view(result))
        return
    if name == "quality":
        from sqcli.quality import run_quality

        texts = (data, in_mix or [], other_data, more or [])
        run_quality(model, texts, part, (steps, window, windows), device, dtype, out, output)
        return
    sources = open_sources(data, offline=offline, report=output.note)
    if name == "second-model":
        result = _second_model(sources, device, offline, train_seconds, output)
    else:
        other = open_sources(other_data, offline=offline, report=output.note) if name in TWO_TEXTS else []
        result = _on_model(
            name, model, sources, other, profile, (steps, window, windows), device, dtype, offline, output, keep_sample
        )
    write_json(out, result)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")


def _on_model(
    name: str,
    model: str,
    sources: list[TextSource],
    other_sources: list[TextSource],
    profile: Path | None,
    sizes: tuple[int, int, int],
    device: str,
    dtype: str,
    offline: bool,
    output: Output,
    keep_sample: Path | None,
) -> dict[str, Any]:
    from spectralquant.profile.model import CalibrationProfile
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import text_name
    from sqcli.loading import load_for

    steps, window, windows = sizes
    calibrated = CalibrationProfile.load(profile) if name in WITH_PROFILE else None
    loaded = load_for(calibrated, model, device, dtype, offline, output)
    text, data = _text(loaded.tokenizer, sources, window, output)
    other, other_data = None, ""
    if other_sources:
        need = 2 * (steps + windows) * window
        other = tokenize_sources(loaded.tokenizer, other_sources, need, window=window, report=output.note)
        other_data = text_name(other_sources)
    result = _measure(name, loaded, text, data, other, other_data, calibrated, sizes, output, keep_sample)
    _record(result, text, other)
    return result


def _record(result: dict[str, Any], *texts: MixedText | None) -> None:
    """Which texts were read, with their weights and hashes."""
    result["provenance"]["sources"] = [asdict(share) for text in texts if text is not None for share in text.shares()]


def _measure(
    name: str,
    loaded: LoadedModel,
    text: MixedText,
    data: str,
    other: MixedText | None,
    other_data: str,
    profile: CalibrationProfile | None,
    sizes: tuple[int, int, int],
    output: Output,
    keep_sample: Path | None,
) -> dict[str, Any]:
    steps, window, windows = sizes
    with output.progress() as bar:
        if name == "cold":
            from research.cold import ColdStudy, cold_study

            return cold_study(loaded, text, ColdStudy(steps=steps, window=window, windows=windows), data, bar)
        if name == "packet":
            from research.packet import packet_study

            return packet_study(loaded, profile, text, window, bar)
        if name == "index":
            from research.index import IndexStudy, index_study

            study = IndexStudy(context=4 * window, scored=2 * window, windows=windows)
            return index_study(loaded, profile, text, data, study, bar)
        if name == "tiers":
            from research.tiers import TierStudy, tier_study

            return tier_study(loaded, text, TierStudy(steps=steps, window=window, windows=windows), data, bar)
        if name == "cache":
            from research.cache import cache_study

            return cache_study(loaded, profile, text, 4 * window, 2 * window, bar)
        if name == "coder":
            from research.coder.model import coder_study_of_model

            return coder_study_of_model(loaded, profile, text, window, data, bar)
        if name == "cold-speed":
            from research.cold_speed.model import cold_speed_study_of_model

            return cold_speed_study_of_model(loaded, profile, text, window, data, keep_sample, bar)
        from research.domains import domain_study

        return domain_study(loaded, {data: text, other_data: other}, steps, window, windows, bar)


def _text(tokenizer: Any, sources: list[TextSource], window: int, output: Output) -> tuple[MixedText, str]:
    """The text of a study, read as far as `READ_TOKENS`, and its name."""
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import text_name

    text = tokenize_sources(tokenizer, sources, window, window=window, read=READ_TOKENS, report=output.note)
    return text, text_name(sources)


def _kernels(device: str, output: Output) -> dict[str, Any]:
    from research.kernels import kernel_study
    from spectralquant.errors import InputError
    from spectralquant.models.load import pick_device

    where = pick_device(device)
    if where.type != "cuda":
        raise InputError("The kernels study times kernels on a CUDA device, and there is none here.")
    with output.progress() as bar:
        return kernel_study("llama-3.1-8b", 32768, (1, 8), where, bar)


def _calibrate_scale(
    parts: list[str] | None,
    model: str,
    data: list[str],
    sizes: tuple[int, int, int],
    device: str,
    dtype: str,
    offline: bool,
    out: Path,
    output: Output,
) -> None:
    from research.scale.quality import QualityStudy
    from research.scale.study import PARTS, scale_study
    from spectralquant.errors import InputError, did_you_mean
    from spectralquant.files import read_json, write_json
    from spectralquant.models.load import load_model
    from spectralquant.text.read import open_sources
    from sqcli.terminal.study import study_view

    for part in parts or ():
        if part not in PARTS:
            raise InputError(f"There is no part {part!r}; there are {', '.join(PARTS)}.{did_you_mean(part, PARTS)}")

    def load() -> tuple[LoadedModel, MixedText]:
        loaded = load_model(model, device=device, dtype=dtype, offline=offline, report=output.note)
        sources = open_sources(data, offline=offline, report=output.note)
        return loaded, _text(loaded.tokenizer, sources, window, output)[0]

    steps, window, windows = sizes
    quality = QualityStudy(steps=(max(1, steps // 4), max(1, steps // 2), steps), window=window, windows=windows)

    rows = read_json(out, "The results file")["rows"] if out.is_file() else []
    with output.progress() as bar:
        keep = lambda result: write_json(out, result)  # noqa: E731
        result = scale_study(parts or list(PARTS), rows, load, keep, bar, model, quality, anew=bool(parts))
    write_json(out, result)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")


def _one_text(data: list[str]) -> str:
    from spectralquant.errors import InputError

    if len(data) != 1:
        raise InputError(f"--data: this study reads one text, not {len(data)}.")
    return data[0]


def _shapes(
    models: list[str] | None,
    sizes: tuple[int, int],
    device: str,
    dtype: str,
    data: str,
    out: Path,
    output: Output,
) -> None:
    from research.shapes import MODELS, ShapeStudy, failures, shape_study
    from spectralquant.files import write_json
    from spectralquant.models.load import pick_device
    from sqcli.terminal.study import study_view

    study, save = ShapeStudy(steps=sizes[0], window=sizes[1], data=data), lambda result: write_json(out, result)
    with output.progress() as bar:
        result = shape_study(tuple(models or MODELS), study, pick_device(device), dtype, save, bar)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")
    failed = list(failures(result))
    for line in failed:
        output.note(line)
    if failed:
        raise typer.Exit(1)


def _architectures(out: Path, output: Output) -> None:
    from research.architectures.study import WRONG, architecture_study
    from spectralquant.files import write_json
    from sqcli.terminal.study import study_view

    with output.progress() as bar:
        result = architecture_study(progress=bar)
    write_json(out, result)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")
    if any(row["outcome"] == WRONG for row in result["rows"]):
        raise typer.Exit(1)


def _gate(output: Output) -> dict[str, Any]:
    from spectralquant.gate.simulation import simulate

    with output.progress() as bar:
        return simulate(progress=bar)


def _second_model(
    sources: list[TextSource], device: str, offline: bool, train_seconds: float, output: Output
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from research.second_model import second_model_study
    from spectralquant.models.builtin.folder import builtin_folder
    from spectralquant.models.builtin.table import DEFAULT_MODEL
    from spectralquant.models.load import pick_device

    tokenizer = AutoTokenizer.from_pretrained(builtin_folder(DEFAULT_MODEL, offline=offline, report=output.note))
    text, data = _text(tokenizer, sources, 1024, output)
    with output.progress() as bar:
        result = second_model_study(tokenizer, text, data, pick_device(device), train_seconds, bar)
    _record(result, text)
    return result
