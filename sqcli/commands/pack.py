"""`sq pack`: a prompt's KV cache to a packet on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Device, Dtype, Json, Offline, ProfileModel, Quiet, Resume, Svg
from sqcli.typos import one_of

EXACT = ("auto", "float16", "bfloat16", "float32", "int8")


def pack(
    context: typer.Context,
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Calibration profile with a cold tier.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Packet file to write.")],
    prompt: Annotated[str | None, typer.Argument(help="The prompt; or use --file.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this text file.")] = None,
    model: ProfileModel = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Cut the prompt after this many tokens.")] = None,
    exact: Annotated[
        str,
        typer.Option(
            help="Sinks and recent window: auto (model dtype), float16, bfloat16, float32 or int8.",
            **one_of("--exact", EXACT),
        ),
    ] = "auto",
    step_scale: Annotated[
        float, typer.Option(help="Multiply the calibrated step: above 1 smaller, below 1 better.")
    ] = 1.0,
    adaptive_tables: Annotated[
        bool,
        typer.Option(
            "--adaptive-tables", "--adaptive", help="Let blocks shift their tables (text unlike the calibration's)."
        ),
    ] = False,
    resume: Resume = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Run a prompt through the model once and write its compressed KV cache.

    Example: [bold]sq pack --profile profiles/demo --file manual.txt --out manual.sqkv[/bold]
    """
    from spectralquant.errors import InputError
    from spectralquant.text.documents.encoding import read_text_file
    from sqcli.refusals.sources import flags_win

    prompt, file = flags_win(context, prompt=prompt, file=file)
    if (prompt is None) == (file is None):
        raise InputError("Give either a prompt or --file, as in sq pack --file manual.txt.")
    if not 0.05 <= step_scale <= 20:
        raise InputError(f"--step-scale {step_scale:g} must lie between 0.05 and 20.")
    if file is not None:
        prompt = read_text_file(file)
    if not prompt.strip():
        raise InputError("The prompt is empty; there is nothing to pack.")

    import time

    import torch

    from spectralquant.cache.persist.prompt import pack_prompt
    from spectralquant.provenance import device_facts, provenance
    from spectralquant.results.files import results_file
    from spectralquant.results.unfinished import UnfinishedRun
    from spectralquant.text.tokens import prompt_ids, tokens_sha256
    from sqcli.collisions import profile_files
    from sqcli.loading.for_profile import load_for
    from sqcli.loading.profile import load_profile
    from sqcli.output import Output
    from sqcli.terminal.packet import packet_row, packet_view

    reads = {"--file": file, "--profile": profile_files(profile)}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, writes={"--out": out}, reads=reads)
    loaded_profile = load_profile(profile)
    loaded = load_for(loaded_profile, model, device, dtype, offline, output.note)
    ids = torch.tensor([prompt_ids(loaded.tokenizer, prompt)[:max_tokens]])
    start = time.perf_counter()
    settings = {"exact": exact, "step_scale": step_scale, "adaptive_tables": adaptive_tables}
    inputs = settings | {
        "profile": loaded_profile.id.hex(),
        "tokens": tokens_sha256(ids),
        "dtype": str(loaded.model.dtype),
        "device": str(loaded.device),
    }
    with output.progress() as bar, UnfinishedRun("pack", inputs, resume=resume, report=output.note) as kept:
        packet = pack_prompt(
            loaded.model,
            loaded_profile,
            ids,
            **settings,
            kept=kept,
            progress=bar,
        )[0]
        packet.save(out)
    row = packet_row(packet)
    row.prefill_and_encode_s, row.file = time.perf_counter() - start, str(out)
    if not row.coded_tokens:
        output.note(
            f"Nothing is compressed: the first and the most recent tokens stay exact, and the prompt has no other ones. "
            f"The packet has {row.bytes:,} bytes, the fp16 cache {row.fp16_bytes:,}."
        )
    output.show(packet_view(packet, f"Packed {packet.header.tokens:,} tokens into {out}"))
    output.finish(results_file("pack", [row], provenance(**device_facts(loaded.device))), title="sq pack")
