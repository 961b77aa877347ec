"""`sq unpack`: a packet back to a KV cache, and on from there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sqcli.options import Config, Csv, Device, Dtype, Json, Offline, ProfileModel, Quiet, Svg


def unpack(
    context: typer.Context,
    packet: Annotated[Path, typer.Argument(help="Packet file.")],
    profile: Annotated[Path, typer.Option("--profile", "-p", help="The profile that packed it.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write keys and values as safetensors.")] = None,
    then: Annotated[str | None, typer.Option(help="Go on with this text and generate.")] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after --then.")] = 40,
    model: ProfileModel = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    json: Json = None,
    csv: Csv = None,
    svg: Svg = None,
    quiet: Quiet = False,
    config: Config = None,
) -> None:
    """Decode a packet into a cache; write it out, or continue the prompt from it.

    Example: [bold]sq unpack manual.sqkv --profile profiles/demo --then " In short,"[/bold]
    """
    from spectralquant.errors import InputError
    from sqcli.refusals.idle import refuse_idle

    if then is None:
        refuse_idle(context, ["new_tokens"], "without --then")
    elif not then:
        raise InputError("--then is empty: give the text to continue with, or leave it out.")
    import time

    from spectralquant.cache.persist.prompt import require_packet, unpack_cache
    from spectralquant.codec.packet import SpectralPacket
    from spectralquant.models.limits import require_positions
    from spectralquant.provenance import device_facts, provenance
    from spectralquant.results.files import results_file
    from sqcli.collisions import profile_files
    from sqcli.loading.for_profile import load_for
    from sqcli.loading.packet import reading_packet
    from sqcli.loading.profile import load_profile
    from sqcli.output import Output
    from sqcli.terminal.packet import packet_row, packet_view

    reads = {"the packet": packet, "--profile": profile_files(profile)}
    output = Output(json_file=json, csv_file=csv, svg_file=svg, quiet=quiet, writes={"--out": out}, reads=reads)
    loaded_profile = load_profile(profile)
    with reading_packet(packet):
        opened = SpectralPacket.open(packet)
    require_packet(loaded_profile, opened)
    loaded = load_for(loaded_profile, model, device, dtype, offline, output.note)
    if then is not None:  # `continue_from` says the same, after the packet is decoded
        tokens = opened.header.tokens + len(loaded.tokenizer(then, add_special_tokens=False).input_ids) + new_tokens
        require_positions(loaded.model, tokens, "The packed prompt with the text to come", "Make --new-tokens smaller.")
    start = time.perf_counter()
    with output.progress() as bar, reading_packet(packet):
        cache = unpack_cache(loaded.model, loaded_profile, opened, progress=lambda d, t: bar("decoding blocks", d, t))
    seconds = time.perf_counter() - start
    row = packet_row(opened)
    row.decode_s = seconds
    output.show(packet_view(opened, f"Decoded {opened.header.tokens:,} tokens in {seconds:.2f} s"))
    if out is not None:
        _write_tensors(out, cache)
        output.note(f"Wrote {out}")
    if then is not None:
        from spectralquant.cache.persist.prompt import continue_from

        row.continuation = continue_from(loaded, cache, then, new_tokens)
        output.show(row.continuation)
    output.finish(results_file("unpack", [row], provenance(**device_facts(loaded.device))), title="sq unpack")


def _write_tensors(path: Path, cache) -> None:
    from safetensors.torch import save

    from spectralquant.files import write_bytes

    tensors = {}
    for i, layer in enumerate(cache.layers):
        tensors |= {
            f"layer.{i}.key": layer.keys.cpu().contiguous(),
            f"layer.{i}.value": layer.values.cpu().contiguous(),
        }
    write_bytes(path, save(tensors))
