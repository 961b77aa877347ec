"""`sq show`: what a profile holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Json, Quiet, Svg


def show(
    context: typer.Context,
    profile: Annotated[Path, typer.Argument(help="Profile path, with or without .json.")],
    layer: Annotated[int | None, typer.Option(min=0, help="Show this layer's heads.")] = None,
    head: Annotated[int | None, typer.Option(min=0, help="Show this head (needs --layer).")] = None,
    diff: Annotated[Path | None, typer.Option(help="A second profile to compare with.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the whole profile, or --diff, as one self-contained page.")
    ] = None,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Show ranks, bits, spectra and attention entropy of a profile.

    Example: [bold]sq show profiles/demo --layer 12 --head 1[/bold]
    """
    from spectralquant.errors import InputError
    from spectralquant.profile.sidecar import profile_stem
    from spectralquant.profile.view import ProfileView
    from sqcli.collisions import profile_files
    from sqcli.html.page import write_page
    from sqcli.html.profile_page import profile_page
    from sqcli.output import Output
    from sqcli.refusals.idle import refuse_idle
    from sqcli.refusals.pages import require_page_name
    from sqcli.refusals.profiles import refuse_other_files
    from sqcli.refusals.sources import given
    from sqcli.results import show_result
    from sqcli.terminal.calibrated import diff_view, head_view, layer_view, profile_view
    from sqcli.terminal.outcome import next_text, outcome_text, serving_tiers

    if head is not None and layer is None and given(context, "head"):
        raise InputError("--head needs --layer as well, as in --layer 12 --head 1.")
    if diff is not None:
        refuse_idle(context, ["layer", "head"], "with --diff, which compares whole profiles")
    if diff is not None or layer is None:
        layer = head = None  # of a configuration file
    reads = {"PROFILE": profile_files(profile), "--diff": profile_files(diff)}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, writes={"--html": html}, reads=reads)
    require_page_name("--html", html)
    for path in (profile, *(() if diff is None else (diff,))):
        refuse_other_files(path)
    one = ProfileView.load(profile)
    other = None if diff is None else ProfileView.load(diff)
    if other is not None:
        output.show(*diff_view(one, other))
    elif layer is None:
        output.show(*profile_view(one, output.console.width))
        output.show(
            outcome_text(one.sidecar),
            next_text(
                profile_stem(profile), tiers=tuple(one.sidecar.tiers), shown=True, serving=serving_tiers(one.sidecar)
            ),
        )
    elif head is None:
        output.show(*layer_view(one, layer))
    else:
        output.show(*head_view(one, layer, head))
    if html is not None:
        write_page(html, profile_page(one, other))
        output.note(f"Wrote {html}")
    output.finish(show_result(one, other, layer, head), title=f"sq show {profile.name}")
