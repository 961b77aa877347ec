"""Tables of packets and of a profile's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.results.caches import PacketRow, TensorRow

if TYPE_CHECKING:
    from spectralquant.codec.packet import SpectralPacket
    from spectralquant.profile.model import CalibrationProfile


def packet_row(packet: SpectralPacket) -> PacketRow:
    """Sizes and ratios of a packet, all from its real bytes."""
    h = packet.header
    coded = packet.coded_tokens
    tokens = sum(s.tokens for s in packet.sections if s.group == 0)
    return PacketRow(
        tokens=h.tokens,
        coded_tokens=coded,
        exact_tokens=tokens - coded,
        bytes=packet.nbytes,
        coded_bytes=packet.coded_bytes,
        exact_dtype=h.exact_dtype,
        step_scale=h.step_scale,
        ways=packet.ways,
        profile_id=h.profile_id.hex(),
        windows=[group.window for group in h.all_groups],
        fp16_bytes=packet.fp16_bytes,
        payload_ratio=packet.coded_fp16_bytes / packet.coded_bytes if packet.coded_fp16_bytes else None,
        whole_cache_ratio=packet.fp16_bytes / packet.nbytes,
    )


def packet_view(packet: SpectralPacket, title: str) -> RenderableType:
    """What is in a packet."""
    r = packet_row(packet)
    h = packet.header
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("model shape", f"{h.layers} layers × {h.kv_heads} KV heads × {h.head_dim}")
    for group in h.groups:
        window = "all tokens" if group.window is None else f"{group.window:,} tokens at most"
        table.add_row(f"layers: {len(group.layers)}", f"reading {window}")
    table.add_row("coded tokens", f"{r['coded_tokens']:,} in {r['coded_bytes']:,} bytes")
    table.add_row("coded blocks", ", ".join(f"{count:,} {way}" for way, count in r.ways.items()) or "none")
    table.add_row("exact tokens", f"{r['exact_tokens']:,} ({h.sinks} sinks, the rest recent) as {h.exact_dtype}")
    table.add_row("fp16 cache", f"{r['fp16_bytes']:,} bytes (transformers' own)")
    table.add_row(
        "packet", f"{r['bytes']:,} bytes in {len(packet.sections)} section{'s' * (len(packet.sections) != 1)}"
    )
    if r["payload_ratio"] is not None:
        table.add_row("payload ratio", _bold(f"{r['payload_ratio']:.1f}", "  (coded tokens, headers in)"))
    table.add_row("whole-cache ratio", _bold(f"{r['whole_cache_ratio']:.1f}", "  (all tokens, sinks and recent in)"))
    table.add_row("profile", h.profile_id.hex())
    return table


def profile_contents(profile: CalibrationProfile) -> tuple[list[TensorRow], RenderableType]:
    """Tensors of a profile with shapes and bytes."""
    from spectralquant.profile.serving import rotary_tensors
    from spectralquant.profile.tensors import flatten

    tensors = flatten("heads", profile.heads)
    for name, tier in profile.tiers.items():
        tensors |= flatten(name, tier)
    if profile.rotary is not None:
        tensors |= rotary_tensors(profile.rotary)
    rows = [
        TensorRow(
            tensor=k,
            shape=list(t.shape),
            dtype=str(t.dtype).removeprefix("torch."),
            bytes=t.numel() * t.element_size(),
        )
        for k, t in sorted(tensors.items())
    ]
    side = profile.sidecar
    table = Table(
        title=f"{profile.path}: SHA-256 and shapes are right; {side.model.name} on {side.text.source}"
        + (", for serving engines" if side.serving is not None else ""),
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column, justify in (("tensor", "left"), ("shape", "right"), ("dtype", "right"), ("bytes", "right")):
        table.add_column(column, justify=justify)
    for row in rows:
        table.add_row(row.tensor, "×".join(map(str, row.shape)), row.dtype, f"{row.bytes:,}")
    table.add_row(_bold("all"), "", "", _bold(f"{sum(r.bytes for r in rows):,}"))
    return rows, table


def _bold(text: str, rest: str = "") -> Text:
    return Text.assemble((text, "bold"), rest)
