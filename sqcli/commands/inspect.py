"""`sq inspect`: what a packet or profile holds, its sizes, its integrity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Json, Quiet, Svg


def inspect(
    file: Annotated[Path, typer.Argument(help="A packet (.sqkv) or a profile (.json or .safetensors).")],
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Read every section or tensor, verify checksums, list sizes.

    Example: [bold]sq inspect manual.sqkv[/bold]
    """
    from spectralquant.profile.sidecar import profile_stem
    from spectralquant.provenance import provenance
    from spectralquant.results.files import results_file
    from sqcli.output import Output

    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet)
    if file.suffix in {".json", ".safetensors"} or profile_stem(file).with_name(file.name + ".json").is_file():
        from spectralquant.profile.model import CalibrationProfile
        from sqcli.terminal.packet import profile_contents

        rows, view = profile_contents(CalibrationProfile.load(file))
    else:
        from spectralquant.codec.packet import SpectralPacket
        from sqcli.terminal.packet import packet_row, packet_view

        packet = SpectralPacket.open(file)
        for section in packet.sections:
            packet.body(section)
        rows, view = (
            [packet_row(packet)],
            packet_view(packet, f"{file}: all {len(packet.sections)} checksums are right"),
        )
    output.show(view)
    output.finish(results_file("inspect", rows, provenance()), title=f"sq inspect {file.name}")
