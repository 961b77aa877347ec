"""`sq compare`: every method on the same tokens."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectralquant.evaluation.tasks.names import task_files
from spectralquant.methods.names import method_names
from sqcli.options import (
    DEFAULT_DATA,
    Config,
    Csv,
    Data,
    Device,
    Dtype,
    Json,
    Offline,
    Part,
    ProfileModel,
    Quiet,
    Quotable,
    Resume,
    Seed,
    Svg,
)
from sqcli.typos import check_methods, checked, completed

if TYPE_CHECKING:
    from spectralquant.methods.registry import MethodSpec

DEFAULT_PROFILE = Path("profiles/demo")
QUICK_WINDOWS, QUICK_CONTEXT, QUICK_CALIBRATION = 2, 768, 8
CALIBRATION_CONTEXT = 2048
READ_TOKENS = 4_000_000


def compare(
    call: typer.Context,
    methods: Annotated[
        list[str],
        typer.Argument(
            help=f"METHOD or METHOD:option=value,…; A+B composes. Methods: {', '.join(method_names())}; or all.",
            callback=checked(check_methods),
            **completed(method_names),
        ),
    ],
    profile: Annotated[
        Path, typer.Option("--profile", "-p", help="Calibrated profile of the model.")
    ] = DEFAULT_PROFILE,
    model: ProfileModel = None,
    data: Data = DEFAULT_DATA,
    context: Annotated[str, typer.Option(help="Tokens per window; several as 2048,8192.")] = "2048",
    windows: Annotated[int, typer.Option(min=1, help="Windows of the first length; others score as many tokens.")] = 24,
    calibration_windows: Annotated[
        int,
        typer.Option(min=0, help="Windows of 2048 tokens from the start, none scored, that rivals may calibrate on."),
    ] = 100,
    match: Annotated[str | None, typer.Option(help="Compare bytes at equal quality: kl=0.01.")] = None,
    needle: Annotated[int, typer.Option(min=0, help="Needle trials per method (0: none).")] = 20,
    tasks: Annotated[
        str, typer.Option(help=f"More tasks: {', '.join(task_files())}; several with commas, or all.")
    ] = "",
    task_context: Annotated[str, typer.Option(help="Tokens per task; several as 2048,8192.")] = "2048",
    task_trials: Annotated[int, typer.Option(min=1, help="Trials per task and method.")] = 10,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Minutes on two cores, by fewer and shorter windows where none are given; too small to quote.",
        ),
    ] = False,
    resume: Resume = False,
    part: Part = None,
    quotable: Quotable = False,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    offline: Offline = False,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Rates, quality, retrieval and times of methods on the same tokens; uncompressed and spectral are always in.

    Example: [bold]sq compare turboquant h2o --quick[/bold]
    """
    from dataclasses import asdict, replace

    from spectralquant.errors import InputError
    from spectralquant.evaluation.match import parse_match
    from spectralquant.evaluation.tasks.run import parse_tasks
    from spectralquant.methods.registry import REGISTRY, check, parse
    from spectralquant.origin.quotable import begin
    from spectralquant.results.part_of_run import PartOfRun, parse_part
    from sqcli.collisions import profile_files, text_files
    from sqcli.loading.for_profile import load_for
    from sqcli.loading.profile import load_profile
    from sqcli.output import Output
    from sqcli.refusals.idle import WITH_PART, WRITES, refuse_idle
    from sqcli.refusals.pages import require_page_name
    from sqcli.refusals.sources import chosen, given

    if quick and quotable:
        raise InputError("--quotable refuses what is too small to quote, and --quick is. Leave one of them out.")
    begin(quotable)
    own = None if part is None else parse_part(part)
    if own is not None:
        refuse_idle(call, WRITES, WITH_PART)
    level = None if match is None else parse_match(match)
    stands = given if given(call, "quick") else chosen  # --quick is stronger than a file that does not name it
    if quick:
        context = context if stands(call, "context") else str(QUICK_CONTEXT)
        windows = windows if stands(call, "windows") else QUICK_WINDOWS
        calibration_windows = calibration_windows if stands(call, "calibration_windows") else QUICK_CALIBRATION
    lengths = _lengths(context)
    more = parse_tasks(tasks)
    if not more:
        refuse_idle(call, ["task_context", "task_trials"], "without --tasks")
    task_lengths = tuple(_lengths(task_context, "--task-context")) if more else ()
    every = [name for name in REGISTRY if name not in ("none", "spectral")]
    names = [name for text in methods for name in (every if text == "all" else [text])]
    groups = _once([parse(text) for text in names])
    for group in groups:
        for spec in group:
            check(spec)
    wanted = {spec.name for group in groups for spec in group}
    always = [name for name in ("none", "spectral") if name not in wanted]
    groups = [parse(name) for name in always] + groups
    from spectralquant.claims import claimed
    from spectralquant.evaluation.compare import FULL, QUICK, Comparison, modes_of
    from spectralquant.methods.context import MethodContext
    from spectralquant.models.limits import require_positions
    from spectralquant.results.unfinished import UnfinishedRun
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import open_sources, text_name
    from sqcli.progress.plans import comparison_plan
    from sqcli.terminal.compare import comparison_view

    reads = {"--profile": profile_files(profile), "--data": text_files(data)}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, writes={"--html": html}, reads=reads)
    require_page_name("--html", html)
    if profile == DEFAULT_PROFILE and not profile.with_name(profile.name + ".json").is_file():
        raise InputError(
            "There is no profiles/demo yet. Run `make demo`, or `sq calibrate --out PROFILE` and --profile PROFILE."
        )
    loaded_profile = load_profile(profile)
    sources = open_sources(data, offline=offline, report=output.note)
    loaded = load_for(loaded_profile, model, device, dtype, offline, output.note)
    for option, some in {"--context": lengths, "--task-context": task_lengths}.items():
        require_positions(loaded.model, max(some, default=0), f"A window of {option}", "Make it smaller.")
    if "spectral" not in wanted:
        place = always.index("spectral")
        groups[place] = [spec for spec in groups[place] if spec.options.get("tier", "cold") in loaded_profile.tiers]
    text = tokenize_sources(
        loaded.tokenizer, sources, lengths[0] * windows, window=max(lengths), read=READ_TOKENS, report=output.note
    )
    scored = _scored(text, loaded_profile, lengths, windows)
    free = min((len(text.windows(n)) - len(some)) * n for n, some in scored.items()) // CALIBRATION_CONTEXT
    calibration = text.windows(CALIBRATION_CONTEXT)[: min(free, calibration_windows)]
    holder = MethodContext(loaded, loaded_profile, calibration, seed)
    if quick:
        protocol = replace(QUICK, needle_trials=needle if stands(call, "needle") else QUICK.needle_trials)
    else:
        protocol = replace(FULL, needle_trials=needle, needle_context=min(2048, max(lengths)))
    claim = contextlib.nullcontext() if json in (None, "-") else claimed(json, "--json")
    protocol = replace(protocol, tasks=more, task_contexts=task_lengths, task_trials=task_trials if more else 0)
    both = [(group[0].name, mode) for mode in modes_of(groups) for group in groups if _some_in(group, mode)]
    trials = [("needle", protocol.needle_context)] if protocol.needle_trials else []
    plan = comparison_plan(both, list(scored), [*trials, *((name, n) for name in more for n in task_lengths)])
    with claim, output.progress(plan) as bar:
        comparison = Comparison(holder, scored, protocol, text_name(sources), bar)
        named = [str(spec) for group in groups for spec in group]
        inputs = {**comparison.identity, "methods": named, "text": text_name(sources), "device": str(loaded.device)}
        if own is not None:
            with PartOfRun("compare", inputs, own, report=output.note) as shared:
                comparison.run(groups, shared)
            output.note(shared.ending())
            return
        with UnfinishedRun("compare", inputs, resume=resume, report=output.note) as kept:
            result = comparison.run(groups, kept)
    result.provenance["sources"] = [asdict(share) for share in text.shares()]
    if level is not None:
        from spectralquant.evaluation.match import matched

        result.matched = matched(result.rows, level)
    output.finish(result, title="sq compare", view=lambda: comparison_view(result, level))
    if html is not None:
        from sqcli.html.page import write_page
        from sqcli.html.report import report_page

        write_page(html, report_page([(Path("compare"), result)]))
        output.note(f"Wrote {html}")
    if all(row.failed for row in result.rows if row.method in wanted):
        raise InputError("None of the methods that were named could be measured; see the reasons above.")


def _once(groups: list[list[MethodSpec]]) -> list[list[MethodSpec]]:
    """Every method and budget once, where it is first named: `all turboquant:bits=3` measures no budget twice."""
    seen: list[MethodSpec] = []
    out = []
    for group in groups:
        new = [spec for spec in group if spec not in seen]
        seen += new
        out += [new] if new else []
    return out


def _some_in(group, mode: str) -> bool:
    """Whether one of a method's budgets is measured in a protocol."""
    return any(spec.mode in (None, mode) for spec in group)


def _lengths(text: str, option: str = "--context") -> list[int]:
    from spectralquant.errors import InputError

    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 384:
        raise InputError(f"{option} {text!r} must be token counts of at least 384, as 2048 or 2048,8192.")
    return lengths


def _scored(text, profile, lengths: list[int], count: int):
    """The last windows of the text, none of which the profile was calibrated on."""
    from spectralquant.errors import InputError
    from spectralquant.text.tokens import tokens_sha256

    side = profile.sidecar.text
    seen = text.seen(side.sources)
    if not side.sources and len(text.ids) >= side.tokens and side.tokens % side.window == 0:
        first = text.windows(side.window)[: side.tokens // side.window]
        if tokens_sha256(first) == side.sha256:
            seen = side.tokens
    out = {}
    total = lengths[0] * count
    for length in lengths:
        every = text.windows(length)
        want = max(1, total // length)
        if (len(every) - want) * length < seen:
            raise InputError(
                f"The text has {len(text.ids):,} tokens, of which the profile was calibrated on {seen:,}; {want} windows "
                f"of {length} do not fit into the rest. Give other text (--data), or fewer --windows."
            )
        out[length] = every[-want:]
    return out
