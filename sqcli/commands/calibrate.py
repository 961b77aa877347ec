"""`sq calibrate`: the rank and bit profile of a model on domain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sqcli.options import DEFAULT_DATA, Config, Csv, Data, Device, Dtype, Json, Model, Offline, Quiet, Resume, Seed, Svg
from sqcli.typos import check_data, check_target, checked, metric_names, one_of, purpose_names, tier_names

if TYPE_CHECKING:
    from spectralquant.calibration.options import CalibrationSettings
    from spectralquant.models.load import LoadedModel
    from spectralquant.profile.model import CalibrationProfile
    from spectralquant.results.quality import TextCostRow
    from sqcli.output import Output

LEAST_MEMORY = 10**6
OF_CALIBRATING = (
    *(
        "data",
        "steps",
        "window",
        "target",
        "tier",
        "metric",
        "span",
        "basis",
        "hot_bits",
        "purpose",
        "shrinkage",
        "predict",
    ),
    *("profile_budget", "held_out", "held_out_window", "held_out_data", "out", "resume", "dry_run", "memory", "seed"),
)


def calibrate(
    context: typer.Context,
    model: Model = "builtin:smollm2-135m",
    data: Data = DEFAULT_DATA,
    steps: Annotated[int, typer.Option(help="Batches of text, forward and backward.")] = 100,
    window: Annotated[int, typer.Option(min=1, help="Tokens per step, at least 384.")] = 512,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="ratio=33 (default), bits=2, dppl=0.18, kl=0.01, or error=0.01: a KL that no text is to exceed; for one of several tiers warm:ratio=8.",
            callback=checked(check_target),
        ),
    ] = None,
    tier: Annotated[
        str, typer.Option(help="cold, warm, hot or all.", **one_of("--tier", tier_names, several=True))
    ] = "cold",
    metric: Annotated[
        str,
        typer.Option(
            help="fisher, attention (no backward pass) or energy (plain PCA).",
            **one_of("--metric", metric_names),
        ),
    ] = "fisher",
    span: Annotated[str, typer.Option(help="Layers per basis: head, layer, a number, all or auto.")] = "auto",
    basis: Annotated[
        str,
        typer.Option(
            help="dense, two-level (small and over more layers) or auto (two-level beyond 8,192 coordinates)."
        ),
    ] = "auto",
    hot_bits: Annotated[
        str,
        typer.Option(
            help="Hot tier: free (least loss for its bytes) or even (all heads of a layer alike, which kernels read fastest).",
            **one_of("--hot-bits", ("free", "even")),
        ),
    ] = "free",
    purpose: Annotated[
        str,
        typer.Option(
            "--for",
            help="caches (of transformers), or serving: for the tier of a serving engine, which knows neither token ids nor attention.",
            **one_of("--for", purpose_names),
        ),
    ] = "caches",
    shrinkage: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Lower what the text says of layers together by this share, towards what it says of each alone.",
        ),
    ] = 0.0,
    predict: Annotated[
        str | None,
        typer.Option(
            help="tokens: predict keys and values from token ids first (default of caches); or none.",
            **one_of("--predict", ("tokens", "none")),
        ),
    ] = None,
    profile_budget: Annotated[
        str | None,
        typer.Option(
            help="Largest profile file, as in 20MB: span, predictor and ranks are chosen to fit. Default: a quarter of the model, 400MB at most."
        ),
    ] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Held-out windows to solve on, and as many to report on.")] = 2,
    held_out_window: Annotated[int, typer.Option(min=1, help="Tokens per held-out window.")] = 1024,
    held_out_data: Annotated[
        list[str] | None,
        typer.Option(help="Other text for the held-out windows, as --data.", callback=checked(check_data)),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            help="Say what the profile will cost on other text, as --data; repeat it. Exit code 1 where its promise would break.",
            callback=checked(check_data),
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="With --check: check this profile; nothing is calibrated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Profile path: OUT.safetensors and OUT.json are written. Default: profiles/MODEL-TEXT."),
    ] = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the memory plan and end; nothing is loaded.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Use this much memory at most, as in 22GB: the plan is made to fit. On a GPU PyTorch takes no more."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Calibrate a model on domain text and write its rank and bit profile.

    Example: [bold]sq calibrate --data file:tickets.jsonl=3 --data builtin:pydoc --out profiles/tickets[/bold]
    """
    from spectralquant.calibration.options import TIERS, CalibrationSettings, parse_targets
    from spectralquant.errors import InputError
    from spectralquant.sizes import parse_size
    from sqcli.collisions import profile_files, text_files
    from sqcli.output import Output
    from sqcli.refusals.idle import refuse_idle
    from sqcli.refusals.sources import chosen, given

    named = tuple(dict.fromkeys(t.strip() for t in tier.split(",")))
    tiers = TIERS if "all" in named else named
    settings = CalibrationSettings(
        steps=steps,
        window=window,
        metric=metric,
        span=span,
        basis=basis,
        shrinkage=shrinkage,
        hot_bits=hot_bits,
        tiers=tiers,
        predict=predict or ("none" if purpose == "serving" else "tokens"),
        purpose=purpose,
        seed=seed,
        targets=parse_targets(target or [], tiers),
        held_out_windows=held_out,
        held_out_window=held_out_window,
        profile_budget=None if profile_budget is None else _budget(profile_budget),
    )
    if dtype == "float16":
        raise InputError("--dtype float16 overflows in the backward pass. Use float32 or bfloat16.")
    if "cold" not in tiers:
        refuse_idle(
            context,
            ["span", "basis", "shrinkage", "profile_budget", *(["predict"] if predict == "tokens" else [])],
            "without the cold tier, whose bases it shapes",
        )
    elif span in ("head", "layer", "1"):
        refuse_idle(context, ["shrinkage"], f"with --span {span}, where no layers are taken together")
        if basis == "two-level":
            refuse_idle(context, ["basis"], f"with --span {span}: a second level joins layers")
    if "hot" not in tiers:
        refuse_idle(context, ["hot_bits"], "without the hot tier")
    checking = profile is not None and bool(check or given(context, "profile"))
    stem = out or Path("profiles") / (_default_name(model, data) + ("-serving" if settings.serving else ""))

    def open_output() -> Output:
        return Output(
            json_file=json,
            csv_file=csv,
            svg_file=svg,
            quiet=quiet,
            writes={} if checking else {"--out": profile_files(stem)},
            reads={
                "--data": text_files(data),
                "--held-out-data": text_files(held_out_data or ()),
                "--check": text_files(check or ()),
                "--profile": profile_files(profile) if checking else None,
            },
        )

    if checking:
        if not check:
            raise InputError(
                "--profile is for --check, as in sq calibrate --profile profiles/demo --check file:LOG.txt."
            )
        refuse_idle(context, OF_CALIBRATING, "with --profile, which is checked as it is")
        _check_profile(profile, check, model if chosen(context, "model") else None, device, dtype, offline, open_output)
        return
    if check and settings.serving:
        raise InputError(
            "--check measures caches of transformers; a profile for serving engines codes otherwise. Leave it out."
        )
    if memory is not None and parse_size(memory, "--memory") < LEAST_MEMORY:
        raise InputError(
            f"--memory {memory} is less than 1 MB, and no card has so little. Give a card's memory, as in 24GB."
        )
    if dry_run:
        refuse_idle(context, ["resume"], "with --dry-run, which begins nothing")
        _require_files([*data, *(held_out_data or ()), *(check or ())])
        _dry_run(model, settings, device, dtype, memory, offline, open_output())
        return
    from spectralquant.calibrating.api import calibrate_model
    from spectralquant.calibration.plan import PlannedModel, keep_within, memory_of, plan_for
    from spectralquant.claims import claimed
    from spectralquant.models.load import load_model
    from spectralquant.processes import processes
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import open_sources, text_name
    from sqcli.progress.plans import calibration_plan
    from sqcli.refusals.windows import require_windows
    from sqcli.results import calibration_result
    from sqcli.terminal.calibration import calibration_view, check_view
    from sqcli.terminal.plan import plan_lines

    with processes(device) as (own, device):
        output = open_output() if own.first else Output(quiet=True)
        if own.first:
            with claimed(stem, "--out"):
                pass  # a run that writes there is refused before the model is loaded; calibrate_model claims it for itself
        sources = open_sources(data, offline=offline, report=output.note)
        extra = open_sources(held_out_data, offline=offline, report=output.note) if held_out_data else None
        loaded = load_model(model, device=device, dtype=dtype, offline=offline, report=output.note)
        require_windows(loaded.model.config, window=window, held_out_window=held_out_window)
        available = memory_of(loaded.device, memory)
        plan = plan_for(PlannedModel.of_loaded(loaded), settings, available)
        if memory is not None:
            keep_within(loaded.model, available)
        settings = plan.settings
        for line in plan_lines(plan):
            output.note(line)
        need = steps * window + 2 * held_out * held_out_window
        text = tokenize_sources(loaded.tokenizer, sources, need, window=window, report=output.note)
        other = extra and tokenize_sources(
            loaded.tokenizer, extra, 2 * held_out * held_out_window, window=held_out_window, report=output.note
        )
        names = {"text_name": text_name(sources), "out": stem, "resume": resume, "held_out": other, "processes": own}
        searched = [t for t in tiers if settings.target(t).bits is None]
        plan = calibration_plan(steps, window, [t for t in TIERS if t in tiers], searched)
        with output.progress(plan) as bar:
            made = calibrate_model(loaded, text, settings, **names, progress=bar)
    if made is None:
        return
    checks = _checked(made, loaded, check or (), offline, output)
    view = lambda: (*calibration_view(made, stem), *([check_view(checks)] if checks else []))  # noqa: E731
    output.finish(calibration_result(made, checks), title=f"sq calibrate --steps {steps}", view=view)
    _end(checks)


def _check_profile(
    path: Path,
    texts: Sequence[str],
    model: str | None,
    device: str,
    dtype: str,
    offline: bool,
    open_output: Callable[[], Output],
) -> None:
    """What an existing profile takes on other text."""
    from sqcli.loading.for_profile import load_for
    from sqcli.loading.profile import load_profile
    from sqcli.results import check_result
    from sqcli.terminal.calibration import check_view

    output = open_output()
    profile = load_profile(path)
    loaded = load_for(profile, model, device, dtype, offline, output.note)
    checks = _checked(profile, loaded, texts, offline, output)
    title = f"sq calibrate --profile {path.name} --check"
    output.finish(check_result(profile, checks), title=title, view=lambda: [check_view(checks)])
    _end(checks)


def _checked(
    profile: CalibrationProfile, loaded: LoadedModel, texts: Sequence[str], offline: bool, output: Output
) -> list[TextCostRow]:
    from spectralquant.calibrating.check import check_texts
    from spectralquant.text.read import open_sources

    if not texts:
        return []
    sources = [source for text in texts for source in open_sources([text], offline=offline, report=output.note)]
    with output.progress() as bar:
        return check_texts(loaded, profile, sources, bar, output.note)


def _budget(text: str) -> int:
    """Bytes that a profile may take.

    Raises:
        InputError: no size, or less than any profile takes beside its bases.
    """
    from spectralquant.calibration.run import FILE_OVERHEAD
    from spectralquant.errors import InputError
    from spectralquant.sizes import parse_size

    size = parse_size(text, "--profile-budget")
    if size <= FILE_OVERHEAD:
        raise InputError(
            f"--profile-budget {text} is too small: a profile takes {FILE_OVERHEAD:,} bytes beside its bases. Give more."
        )
    return size


def _end(checks: Sequence[TextCostRow]) -> None:
    """Exit code 1 where a promise would break."""
    if any(row.kept is False for row in checks):
        raise typer.Exit(1)


def _require_files(texts: Sequence[str]) -> None:
    """Texts that are files of this machine must have a beginning; others would have to be fetched.

    Raises:
        InputError, SourceError: one has none.
    """
    from spectralquant.text.read import load_text, parse_weight

    for name, _ in map(parse_weight, texts):
        if not name.startswith(("builtin:", "hub:")):
            next(iter(load_text(name, offline=True)), None)


def _dry_run(
    model: str,
    settings: CalibrationSettings,
    device: str,
    dtype: str,
    memory: str | None,
    offline: bool,
    output: Output,
) -> None:
    """Show what a calibration would take, from the model's configuration alone."""
    from spectralquant.calibration.plan import PlannedModel, memory_of, plan_for
    from spectralquant.models.config import load_config
    from spectralquant.models.load import pick_device, pick_dtype
    from spectralquant.models.spread import ALL, gpu_count
    from sqcli.refusals.windows import require_windows
    from sqcli.results import plan_result
    from sqcli.terminal.plan import plan_table

    place = pick_device("cuda" if memory is not None and device == "auto" else device, absent=memory is not None)
    devices = gpu_count() if device == ALL else 1
    config, element = load_config(model, offline=offline), pick_dtype(dtype, place).itemsize
    require_windows(config, window=settings.window, held_out_window=settings.held_out_window)
    planned = PlannedModel.of_config(model, config, element, devices)
    plan = plan_for(planned, settings, memory_of(place, memory))
    output.show(plan_table(plan))
    output.finish(plan_result(plan, model), title="sq calibrate --dry-run")


def _default_name(model: str, data: Sequence[str]) -> str:
    from spectralquant.text.read import parse_weight

    clean = lambda text: "".join(c if c.isalnum() or c in "-." else "-" for c in text.rsplit("/", 1)[-1])  # noqa: E731
    texts = "-".join(clean(parse_weight(text)[0].split(":", 1)[-1]) for text in data)
    return f"{clean(model.removeprefix('builtin:'))}-{texts}"
