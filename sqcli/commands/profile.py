"""`sq profile`: bandwidth and latency of the kernels on this GPU, against every baseline that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sqcli.options import Config, Csv, Device, Json, Offline, Part, Quiet, Resume, Seed, Svg
from sqcli.typos import check_model, check_shape, checked, device_models, one_of

if TYPE_CHECKING:
    from spectralquant.bench.generate.plan import GenerateRequest
    from spectralquant.bench.run import BenchRequest
    from spectralquant.results.schema import BenchResults
    from sqcli.output import Output


MEASURING = ("kernels", "bits", "index_rank", "window", "end_to_end", "flex", "device_model", "seed")
"""Options of timing kernels alone."""
TIMED = ("kernels", "end_to_end", "flex", "resume", "seed")
OF_A_DEVICE = (*TIMED, "device")
"""Options of timing kernels here."""


def profile(
    call: typer.Context,
    context: Annotated[
        str | None, typer.Option(help="Tokens, one or several: 2048,32768. Default: 32768, with --show all.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Sequences, one or several. Default: 1,8, with --show all.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="llama-3.1-8b (default), llama-3.1-70b, qwen2.5-7b, mistral-7b, smollm2-135m, gemma3-270m, or custom:layers=32,heads=32,"
            "kv_heads=8,head_dim=128.",
            callback=checked(check_shape),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Take the shape from a model's config.json instead.",
            callback=checked(check_model),
        ),
    ] = None,
    kernels: Annotated[
        str | None,
        typer.Option(help="Some of spectral_decode, spectral_index_decode, spectral_reconstruct, spectral_compress."),
    ] = None,
    bits: Annotated[int, typer.Option(min=1, help="Bits a component of the codes: 2, 3, 4 or 8.")] = 4,
    index_rank: Annotated[int, typer.Option(min=1, help="Components of the index, 4 bits each.")] = 16,
    share: Annotated[
        float, typer.Option(min=0.0001, max=1, help="Part of the coded tokens that the index selects.")
    ] = 0.1,
    window: Annotated[int, typer.Option(min=1, help="Recent tokens that stay exact.")] = 128,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="Also whole decode steps of a model with random weights.")
    ] = False,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate",
            help="Time model.generate instead, over compressed and dense caches (random weights at --shape).",
        ),
    ] = False,
    new_tokens: Annotated[int, typer.Option(min=2, help="With --generate: tokens that are generated.")] = 128,
    flex: Annotated[bool, typer.Option(help="FlexAttention among the baselines (compiles for some seconds).")] = True,
    device_model: Annotated[
        str | None,
        typer.Option(
            help="Predict for h100, h200, a100, l40s or rtx4090 (default without a GPU: h100); times nothing.",
            **one_of("--device-model", device_models),
        ),
    ] = None,
    stored: Annotated[
        Path | None,
        typer.Option("--show", help="Measure nothing: show a results file again, its --context and --batch alone."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write tables and curves as one HTML page.")] = None,
    resume: Resume = False,
    part: Part = None,
    device: Device = "auto",
    offline: Offline = False,
    seed: Seed = 0,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Time attention over compressed caches on this GPU: checked against float64 first, beside PyTorch's kernels.

    Without a GPU it prints what a roofline predicts, marked so, and never a time.

    Example: [bold]sq profile --context 32768 --batch 1,8 --shape llama-3.1-8b --html speed.html[/bold]
    """
    from spectralquant.bench.device.devices import parse_device
    from spectralquant.bench.generate.plan import GenerateRequest
    from spectralquant.bench.inputs import CodeSettings
    from spectralquant.bench.run import KERNELS, LEAST_CONTEXT, BenchRequest, predict_device
    from spectralquant.errors import InputError
    from spectralquant.hooks.decoder import position_limit_of
    from spectralquant.models.config import load_config, shape_of_model
    from spectralquant.models.load import pick_device
    from spectralquant.models.shapes import parse_shape
    from spectralquant.results.part_of_run import parse_part
    from sqcli.output import Output
    from sqcli.refusals.idle import WITH_PART, WRITES, refuse_idle
    from sqcli.refusals.pages import require_page_name
    from sqcli.refusals.sources import flags_win, given

    shape, model = flags_win(call, shape=shape, model=model)
    if shape is not None and model is not None:
        raise InputError("--shape and --model both name a shape; give one of them.")
    if stored is not None:
        refuse_idle(
            call, (*MEASURING, "shape", "model", "share", "device", "resume", "generate", "new_tokens"), "with --show"
        )
    elif generate:
        refuse_idle(call, MEASURING, "with --generate")
    else:
        refuse_idle(call, ["new_tokens"], "without --generate")
    if not generate:
        refuse_idle(call, ["part"], "without --generate")
    own = None if part is None else parse_part(part)
    if own is not None:
        refuse_idle(call, WRITES, WITH_PART)
    if device_model is not None:
        refuse_idle(call, OF_A_DEVICE, "with --device-model, which times nothing")
    output = Output(
        json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, writes={"--html": html}, reads={"--show": stored}
    )
    require_page_name("--html", html)
    if stored is not None:
        _show(stored, context, batch, output, html)
        return
    if generate:
        if given(call, "model"):
            raise InputError("--generate times a model with random weights at --shape; --model is not for it.")
        contexts = _numbers(context or "8192,32768,131072", "--context")
        batches = _numbers(batch or "1,4,8,16", "--batch")
        wanted = GenerateRequest(contexts, batches, new_tokens, share)
        _generate(shape or "llama-3.1-8b", wanted, pick_device(device), output, html, resume, own)
        return
    request = BenchRequest(
        shape=shape_of_model(model, offline=offline) if model else parse_shape(shape or "llama-3.1-8b"),
        settings=CodeSettings(bits, index_rank, share, window),
        contexts=_numbers(context or "32768", "--context"),
        batches=_numbers(batch or "1,8", "--batch"),
        kernels=tuple(k.strip() for k in kernels.split(",")) if kernels else KERNELS,
        end_to_end=end_to_end,
        flex=flex,
        seed=seed,
    )
    if LEAST_CONTEXT <= min(request.contexts) <= window:
        raise InputError(
            f"--window {window:,} must be below the shortest --context, {min(request.contexts):,}: nothing would be coded."
        )
    if model is not None:
        limit = position_limit_of(load_config(model, offline=offline).get_text_config())
        if limit is not None and max(request.contexts) > limit:
            raise InputError(
                f"--context {max(request.contexts):,} is beyond the {limit:,} positions of {model} (max_position_embeddings). "
                "Use a shorter one, or --shape for a shape without that limit."
            )
    where = pick_device(device)
    if device_model is not None or where.type != "cuda":
        if device_model is None:
            request.check()
            refuse_idle(call, TIMED, "without a CUDA device, where times are predicted")
        chosen = parse_device(device_model or "h100")
        if device_model is None:
            output.note(f"No CUDA device here: what follows is predicted for {chosen.name} (--device-model).")
        result = predict_device(request, chosen)
    else:
        result = _measure(request, where, output, resume)
    _render(result, output, html)
    if any(r.correct is False and r.kernel in KERNELS for r in result.rows):
        raise typer.Exit(1)


def _render(result: BenchResults, output: Output, html: Path | None) -> None:
    from sqcli.html.page import write_page
    from sqcli.html.report import report_page
    from sqcli.terminal.speed import speed_view

    output.finish(result, title="sq profile", view=lambda: speed_view(result))
    if html is not None:
        write_page(html, report_page([(Path("profile"), result)]))
        output.note(f"Wrote {html}")


def _generate(
    shape: str,
    request: GenerateRequest,
    device: Any,
    output: Output,
    html: Path | None,
    resume: bool,
    part: tuple[int, int] | None,
) -> None:
    """Calibrate a model with random weights for two steps, and time `generate` over its caches."""
    from dataclasses import asdict

    from spectralquant.bench.generate.plan import pair_of
    from spectralquant.bench.generate.run import generate_results
    from spectralquant.calibrating.api import calibrate
    from spectralquant.calibration.options import CalibrationSettings
    from spectralquant.models.load import load_model
    from spectralquant.models.shapes import parse_shape
    from spectralquant.provenance import device_facts
    from spectralquant.results.part_of_run import PartOfRun
    from spectralquant.results.unfinished import UnfinishedRun
    from spectralquant.text.read import load_text
    from sqcli.html.page import write_page
    from sqcli.html.report import report_page
    from sqcli.terminal.generate import generate_view

    loaded = load_model(f"random:{shape}", device=str(device))
    request.check(loaded.model.config.max_position_embeddings)
    settings = CalibrationSettings(
        window=384, tiers=("hot", "warm"), held_out_windows=1, held_out_window=512, hot_bits="even"
    )
    inputs = {"kind": "generate", "shape": shape, **asdict(request), **device_facts(device)}
    run = (
        UnfinishedRun("profile", inputs, resume=resume, report=output.note)
        if part is None
        else PartOfRun("profile", inputs, part, unit=pair_of, report=output.note)
    )
    with output.progress() as bar, run as kept:
        profile = calibrate(
            loaded.model, loaded.tokenizer, load_text("builtin:pydoc"), steps=2, settings=settings, progress=bar
        )
        facts = {"calibration_steps": 2, "calibration_window": settings.window, "hot_bits": settings.hot_bits}
        result = generate_results(loaded, profile, parse_shape(shape), request, facts, bar, output.keep, kept)
    if isinstance(run, PartOfRun):
        output.note(run.ending())
        return
    output.finish(result, title="sq profile --generate", view=lambda: generate_view(result))
    if html is not None:
        write_page(html, report_page([(Path("generate"), result)]))
        output.note(f"Wrote {html}")


def _show(stored: Path, context: str | None, batch: str | None, output: Output, html: Path | None) -> None:
    """A stored profile again, some contexts and batches of it."""
    from spectralquant.errors import InputError
    from spectralquant.results.files import read_results, reading
    from spectralquant.results.schema import BenchResults

    result = read_results(stored)
    if not isinstance(result, BenchResults):
        raise InputError(f"{stored} holds {result.name} results, not those of sq profile.")
    with reading(stored):
        for field, text, option in (("context", context, "--context"), ("batch", batch, "--batch")):
            if text is not None:
                _keep(result, stored, field, _numbers(text, option))
        _render(result, output, html)


def _keep(result: BenchResults, stored: Path, field: str, wanted: tuple[int, ...]) -> None:
    """Only the rows of some contexts or batches."""
    from spectralquant.errors import InputError

    measured = sorted({r[field] for r in result.memory})
    if missing := [n for n in wanted if n not in measured]:
        raise InputError(f"{stored} has no {field} {missing[0]}; it has {', '.join(map(str, measured))}.")
    for part in ("rows", "memory", "end_to_end", "crossover"):
        result[part] = [
            r for r in result[part] if r.get(field) in (*wanted, None) or r.get("kernel") == "spectral_compress"
        ]


def _measure(request: BenchRequest, device: Any, output: Output, resume: bool) -> BenchResults:
    """Measure; every finished cell is in the JSON file already if the run ends early."""
    from dataclasses import asdict

    from spectralquant.bench.run import bench_device
    from spectralquant.provenance import device_facts
    from spectralquant.results.unfinished import UnfinishedRun

    inputs = asdict(request) | device_facts(device)
    with output.progress() as bar, UnfinishedRun("profile", inputs, resume=resume, report=output.note) as kept:
        return bench_device(request, device, bar, output.keep, kept)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from spectralquant.errors import InputError

    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise InputError(f"{option} {text!r} is not a list of positive numbers, as in {option} 1,8.")
    return tuple(dict.fromkeys(int(p) for p in parts))
