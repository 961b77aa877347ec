"""`sq serve-check`: does the tier pay on this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Json, Offline, Quiet, Svg
from sqcli.typos import check_model, checked, one_of


def serve_check(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(help="builtin:smollm2-135m, builtin:gemma3-270m or a folder.", callback=checked(check_model)),
    ],
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile", "-p", help="A profile for serving (sq calibrate --for serving). Default: lossless alone."
        ),
    ] = None,
    codec_device: Annotated[
        str,
        typer.Option(help="Where chunks are coded: cpu or cuda.", **one_of("--codec-device", ("cpu", "cuda"))),
    ] = "cpu",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that share one prefix.")] = 20,
    prefix: Annotated[int, typer.Option(min=128, help="Tokens of that prefix.")] = 1000,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated and compared, a prompt.")] = 8,
    long: Annotated[
        list[int] | None, typer.Option(min=256, help="Also restore prompts of this many tokens, as 8192. Repeat it.")
    ] = None,
    long_prompts: Annotated[int, typer.Option(min=1, help="Prompts of each such length.")] = 3,
    trace: Annotated[int, typer.Option(min=0, help="Requests of the trace over shared prefixes; 0: no trace.")] = 40,
    trace_prefixes: Annotated[int, typer.Option(min=1, help="Prefixes of the trace.")] = 12,
    trace_share: Annotated[
        float,
        typer.Option(
            min=0.01, max=1.0, help="Disk budget of the trace: this share of its prefixes as the engine holds them."
        ),
    ] = 0.25,
    batch: Annotated[
        int, typer.Option(min=0, help="Time decoding so many sequences with and without the tier; 0: not.")
    ] = 0,
    max_kl: Annotated[float, typer.Option(min=0, help="Largest mean KL from recomputing, nats a token.")] = 0.02,
    max_model_len: Annotated[int | None, typer.Option(min=256, help="vLLM's --max-model-len.")] = None,
    eager: Annotated[bool, typer.Option(help="vLLM without compiling and graphs (quicker to start).")] = True,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="Keep stores, logs and reports in this folder, and take those of the same run that lie there."
        ),
    ] = None,
    offline: Offline = False,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Serve the same prompts with vLLM alone and with the tier: same text or KL, hits, time to first token, bytes on disk.

    Every engine runs in a process of its own, so what is restored comes from the store. A trace of requests over shared
    prefixes compares the profile with keeping every bit at one disk budget; on a GPU, vLLM's own tiers are measured too. Exit
    code 1: a stored prefix missed, a lossless text differs, or the KL is above --max-kl. The results can be gated: sq gate.

    Example: [bold]sq serve-check builtin:smollm2-135m --profile serving --long 8192 --json serving.json[/bold]
    """
    from spectralquant.integrations.chunks import LOSSLESS
    from spectralquant.integrations.serve_check.check import ServeCheck, own_tokens
    from spectralquant.integrations.serve_check.check import serve_check as measure
    from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
    from spectralquant.integrations.serve_check.process import require_vllm
    from spectralquant.models.builtin.table import PREFIX
    from sqcli.collisions import profile_files
    from sqcli.loading.profile import load_profile
    from sqcli.output import Output
    from sqcli.refusals.idle import refuse_idle
    from sqcli.refusals.serving import fetched, longest, require_able, require_room, within
    from sqcli.terminal.times.serving import serving_view

    if not long:
        refuse_idle(context, ["long_prompts"], "without --long")
    if not trace:
        refuse_idle(context, ["trace_prefixes", "trace_share"], "with --trace 0")
    reads = {"--profile": profile_files(profile)} if profile else {}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, reads=reads)
    if profile is not None:
        load_profile(profile).require_serving()
    require_able(codec_device, keep)
    lengths = tuple(long or ())
    needed = longest(prefix, own_tokens(prefix, ServeCheck.own), new_tokens, lengths, batch)
    builtin = model.startswith(PREFIX)
    require_room(
        needed, max_model_len, fetched(model) if builtin else model_folder(model, offline=offline, report=output.note)
    )
    require_vllm()
    folder = model_folder(model, offline=offline, report=output.note)
    require_room(needed, max_model_len, folder)
    roomy = max([prefix + 512, needed[0], *(n + 128 for n in lengths)])
    engine, gpu = engine_arguments(max_model_len or within(roomy, folder), eager)
    check = ServeCheck(
        model=str(folder),
        codec=str(profile) if profile else LOSSLESS,
        device=codec_device,
        prompts=prompts,
        prefix=prefix,
        new=new_tokens,
        long=lengths,
        long_prompts=long_prompts,
        trace=trace,
        trace_prefixes=trace_prefixes,
        trace_share=trace_share,
        batch=batch,
        own_tiers=gpu,
        cpu_bytes=(8 << 30) if gpu else 0,
        memory_bytes=(16 << 30) if gpu else 0,
        kl_limit=max_kl,
        engine=engine,
        name=model,
    )
    result = measure(check, output.note, keep)
    output.finish(result, title="sq serve-check", view=lambda: serving_view(result))
    if result.faults:
        raise typer.Exit(1)
