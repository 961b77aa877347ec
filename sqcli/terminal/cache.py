"""What a cache holds and has spent, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from spectralquant.cache.report.stats import CacheStats


def cache_view(stats: CacheStats, seconds: float) -> RenderableType:
    """Bytes per tier, ratios and times; bytes are measured from storages."""
    rows = "" if stats.rows == 1 else f", {stats.rows} sequences"
    table = Table(title=f"Cache of {stats.tokens:,} tokens{rows} after {seconds:.1f} s", title_justify="left", box=None)
    for name in ("", "tokens", "blocks", "bytes", "fp16 bytes / bytes"):
        table.add_column(name, justify="right" if name else "left")
    exact = stats.fp16_bytes - sum(tier.fp16_bytes for tier in stats.tiers.values())
    table.add_row(
        "exact (sinks, window)",
        f"{stats.exact_tokens:,}",
        "",
        f"{stats.exact_bytes:,}",
        f"{exact / max(1, stats.exact_bytes):.2f}",
    )
    for name, tier in stats.tiers.items():
        ratio = f"{tier.fp16_bytes / tier.bytes:.2f}"
        table.add_row(name, f"{tier.tokens:,}", f"{tier.blocks:,}", f"{tier.bytes:,}", ratio)
    if stats.working_set_bytes:
        table.add_row("decoded (working set)", "", "", f"{stats.working_set_bytes:,}", "")
    slack = stats.resident_bytes - stats.exact_bytes - stats.working_set_bytes
    slack -= sum(t.bytes for t in stats.tiers.values())
    if slack:
        table.add_row("unused pages, bases", "", "", f"{slack:,}", "")
    ratio = "–" if stats.resident_ratio is None else Text.assemble((f"{stats.resident_ratio:.2f}", "bold"), " resident")
    table.add_row("all", f"{stats.tokens * stats.rows:,}", "", Text(f"{stats.resident_bytes:,}", style="bold"), ratio)
    spent = stats.spent
    caption = Text(
        f"compressing {spent.compress_s:.2f} s ({spent.blocks_compressed} blocks), reconstructing "
        f"{spent.reconstruct_s:.2f} s, waiting {spent.wait_s:.2f} s; layer reads: {spent.kernel_reads:,} by kernels, {spent.in_place_reads:,} in place, "
        f"{spent.dense_reads:,} dense"
    )
    table.caption_justify = "left"
    for group in stats.groups:
        if group.window is not None:
            fate = "stays exact" if not group.coded else "is coded as far as it is not recent"
            caption.append(
                f"\nlayers that read {group.window:,} tokens at most: {group.layers}; what is older is let go, their window {fate}"
            )
    if stats.reconstructor_failure:
        caption.append(f"\nworker lost: {stats.reconstructor_failure}; went on synchronously", "red")
    if stats.over_budget:
        caption.append("\nover the memory budget with every block in the lowest tier", "red")
    table.caption = caption
    return table


def not_compressed_view(stats: CacheStats) -> list[RenderableType]:
    """A line for each reason why something was not compressed."""
    return [Text(each.message, style="yellow") for each in stats.not_compressed]
