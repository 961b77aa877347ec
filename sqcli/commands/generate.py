"""`sq generate`: text from a compressed cache, with the memory it used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Device, Dtype, Json, Offline, ProfileModel, Quiet, Resume, Seed, Svg
from sqcli.typos import one_of

MOST_CHUNK = 1_000_000


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The prompt; or use --file.")] = None,
    profile: Annotated[Path | None, typer.Option("--profile", "-p", help="Calibrated profile (not for exact).")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this text file.")] = None,
    tier: Annotated[
        str,
        typer.Option(
            help="hot, warm, cold, exact, or auto: the fastest the profile has.",
            **one_of("--tier", ("hot", "warm", "cold", "exact", "auto")),
        ),
    ] = "auto",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 100,
    budget: Annotated[str | None, typer.Option(help="Memory limit of the cache, as 512MB.")] = None,
    working_set: Annotated[str, typer.Option(help="Decoded warm and cold blocks kept, as 64MB.")] = "0",
    exact_bits: Annotated[
        int,
        typer.Option(
            help="16 holds the first and the newest tokens in the model's dtype, 8 as int8 with a scale a vector."
        ),
    ] = 16,
    chunk: Annotated[int, typer.Option(min=1, max=MOST_CHUNK, help="Tokens per prefill step.")] = 1024,
    sample: Annotated[bool, typer.Option("--sample", help="Sample instead of taking the first choice.")] = False,
    model: ProfileModel = None,
    resume: Resume = False,
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
    """Generate from a SpectralCache and show what it held and spent.

    Nothing is compressed below 256 tokens, so a short prompt gains nothing.

    Example: [bold]sq generate --profile profiles/demo --tier hot --file manual.txt[/bold]
    """
    from dataclasses import asdict
    from hashlib import sha256

    from spectralquant.errors import InputError
    from spectralquant.sizes import parse_size
    from spectralquant.text.documents.encoding import read_text_file
    from sqcli.refusals.idle import refuse_idle
    from sqcli.refusals.sources import flags_win

    prompt, file = flags_win(context, prompt=prompt, file=file)
    if (prompt is None) == (file is None):
        raise InputError('Give one prompt: as an argument, "…", or with --file FILE.')
    if exact_bits not in (8, 16):
        raise InputError(f"--exact-bits {exact_bits} is not one of 8, 16.")
    if profile is None and tier not in ("exact", "auto"):
        raise InputError(f"--tier {tier} needs --profile; calibrate one with `sq calibrate --tier all --out PROFILE`.")
    if file is not None:
        prompt = read_text_file(file)
    if not sample:
        refuse_idle(context, ["seed"], "without --sample")
    if tier == "exact":
        refuse_idle(context, ["profile", "budget"], "with --tier exact, which codes nothing and holds all it is given")
    limit = None if budget is None else parse_size(budget, "--budget")
    if profile is None:
        refuse_idle(context, ["budget"], "without --profile: nothing is coded, and all is held")
    if limit == 0:
        raise InputError("--budget 0 holds nothing. Give a size, as 64MB, or leave it out for no limit.")
    from spectralquant.cache.policy import make_policy
    from spectralquant.models.identity import weights_sha256
    from spectralquant.provenance import device_facts, provenance
    from spectralquant.results.caches import GeneratedRow
    from spectralquant.results.files import results_file
    from spectralquant.results.unfinished import UnfinishedRun
    from sqcli.collisions import profile_files
    from sqcli.loading.for_profile import load_for
    from sqcli.loading.profile import load_profile
    from sqcli.output import Output
    from sqcli.refusals.budget import require_exact_tokens
    from sqcli.terminal.cache import cache_view, not_compressed_view

    reads = {"--file": file, "--profile": profile_files(profile)}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, reads=reads)
    loaded_profile = None if profile is None else load_profile(profile)
    policy = make_policy(tier, () if loaded_profile is None else loaded_profile.tiers, None, limit)
    reached = {policy.first, *(policy.available if limit is not None else ())}
    if not any(name in reached and not policy.lower(policy.first, name) for name in ("warm", "cold")):
        refuse_idle(
            context, ["working_set"], "where no block comes into the warm or the cold tier, the ones that are decoded"
        )
    loaded = load_for(loaded_profile, model, device, dtype, offline, output.note)
    if limit is not None:
        require_exact_tokens(limit, loaded, prompt, new_tokens, exact_bits)
    from spectralquant.cache.generation import GenerationOptions, generate_text

    held = parse_size(working_set, "--working-set")
    options = GenerationOptions(tier, new_tokens, limit, held, chunk, sample, seed, exact_bits)
    inputs = asdict(options) | {
        "profile": None if loaded_profile is None else loaded_profile.id.hex(),
        "weights": weights_sha256(loaded.model),
        "prompt": sha256(prompt.encode(errors="backslashreplace")).hexdigest(),
        "dtype": str(loaded.model.dtype),
        "device": str(loaded.device),
    }
    with output.progress() as bar, UnfinishedRun("generate", inputs, resume=resume, report=output.note) as kept:
        generated = generate_text(loaded, loaded_profile, prompt, options, bar, kept)
    output.show(generated.text, cache_view(generated.stats, generated.seconds), *not_compressed_view(generated.stats))
    row = GeneratedRow(
        model=loaded.name,
        tier=tier,
        prompt_tokens=generated.prompt_tokens,
        new_tokens=generated.new_tokens,
        seconds=generated.seconds,
        text=generated.text,
        **generated.stats.as_dict(),
    )
    facts = provenance(**device_facts(loaded.device), seed=seed)
    output.finish(results_file("generate", [row], facts), title="sq generate")
