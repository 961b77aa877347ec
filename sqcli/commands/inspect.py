"""`sq inspect`: what a packet or profile holds, its sizes, its integrity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Json, Quiet, Svg

PROFILE_SUFFIXES = {".json", ".safetensors"}


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
    from spectralquant.errors import InputError
    from spectralquant.provenance import provenance
    from spectralquant.results.files import results_file
    from sqcli.collisions import profile_files
    from sqcli.output import Output

    if file.is_dir() and not (file.name and file.with_name(f"{file.name}.json").is_file()):
        raise InputError(f"{file} is a folder. Name a packet or a profile in it.")
    packet_there = file.is_file() and file.suffix not in PROFILE_SUFFIXES  # results beside a packet are no profile
    is_profile = not packet_there and (file.suffix in PROFILE_SUFFIXES or any(p.is_file() for p in profile_files(file)))
    reads = {"FILE": profile_files(file) if is_profile else file}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, reads=reads)
    if is_profile:
        from sqcli.loading.profile import load_profile
        from sqcli.terminal.packet import profile_contents

        rows, view = profile_contents(load_profile(file))
    else:
        from spectralquant.codec.packet import SpectralPacket
        from sqcli.loading.packet import reading_packet
        from sqcli.terminal.packet import packet_row, packet_view

        with reading_packet(file):
            packet = SpectralPacket.open(file)
            for section in packet.sections:
                packet.body(section)
        rows, view = (
            [packet_row(packet)],
            packet_view(packet, f"{file}: all {len(packet.sections)} checksums are right"),
        )
    output.show(view)
    output.finish(results_file("inspect", rows, provenance()), title=f"sq inspect {file.name}")
