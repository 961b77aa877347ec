"""Tables of measured studies."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.results.caches import CacheCostRow, PacketTimesRow, ResidentRow
from spectralquant.results.quality import MethodRow
from spectralquant.results.schema import CoderResults, Results, SimulationResults
from spectralquant.results.speed import KernelRow
from spectralquant.results.studies import ArchitectureRow, ScaleRow, ShapeRow
from sqcli.figures import shown
from sqcli.terminal.headline import headline_tables
from sqcli.terminal.times.cold_speed import cold_speed_table
from sqcli.terminal.times.serving import serving_view

NO_CACHES = "\nWhat caches hold was not measured: the scored windows together have too few tokens. Give more --windows, or longer ones."


def study_view(result: Results) -> list[RenderableType]:
    """All rows of a study, one table a text and context length; or the times of the packet study."""
    if result.kind == "spectralquant.packet":
        return [packet_times(result.rows[0])]
    if result.kind == "spectralquant.cache":
        return [cache_costs(result.rows)]
    if result.kind == "spectralquant.kernels":
        return [launch_settings(result.rows)]
    if result.kind == "spectralquant.gate-simulation":
        return [error_rates(result)]
    if result.kind == "spectralquant.architectures":
        return [architecture_outcomes(result.rows)]
    if result.kind == "spectralquant.index":
        return [index_quality(result.rows)]
    if result.kind == "spectralquant.headline":
        return headline_tables(result)
    if result.kind == "spectralquant.cold-speed":
        return [cold_speed_table(result)]
    if result.kind == "spectralquant.calibrate-scale":
        return [scale_runs(result.rows)]
    if result.kind == "spectralquant.serving":
        return serving_view(result)
    if result.kind == "spectralquant.coder":
        return [coder_speed(result)]
    if result.kind == "spectralquant.shapes":
        models = dict.fromkeys(r.model for r in result.rows)
        return [model_steps(m, [r for r in result.rows if r.model == m]) for m in models]
    parts: list[RenderableType] = []
    groups: dict[tuple[str, int], list[MethodRow]] = {}
    for row in result.rows:
        groups.setdefault((row.text or "", row.context), []).append(row)
    for (text, context), rows in groups.items():
        title = f"\n{text} {context}-token windows, n = {rows[0].n_tokens:,} scored, base PPL {rows[0].base_ppl:.2f}"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        table.add_column("method")
        for name in ("payload", "whole cache", "ΔPPL", "KL, nats", "top-1"):
            table.add_column(name, justify="right", no_wrap=True)
        for r in rows:
            table.add_row(
                method_label(r),
                f"{r.payload_ratio:.1f}",
                f"{r.whole_cache_ratio:.1f}",
                f"{r.delta_ppl:+.3f}",
                shown("kl_nats", r.kl_nats),
                f"{100 * r.top1:.1f} %",
            )
        parts.append(table)
    if "resident" in result:
        parts.append(resident_table(result.resident) if result.resident else Text(NO_CACHES, style="yellow"))
    return parts


def architecture_outcomes(rows: list[ArchitectureRow]) -> Table:
    """Which architectures are right, refused, or wrong; the largest distance of the coded reads."""
    table = Table(title=f"\n{len(rows)} architectures", title_justify="left", box=None, padding=(0, 1))
    for name in ("architecture", "attention", "outcome", "worst read, or reason"):
        table.add_column(name, overflow="fold")
    for row in rows:
        worst = max(row.distances.values()) if row.outcome == "right" else None
        table.add_row(row.name, row.what, row.outcome, row.reason if worst is None else f"{worst:.3f}")
    return table


def resident_table(rows: list[ResidentRow]) -> Table:
    """What cache objects hold."""
    r = rows[0]
    title = f"\nCaches of {r.context:,} tokens, {r.dtype} model: bytes of every tensor they hold"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("tier", "payload", "resident", "bytes", "KL, nats"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for r in rows:
        payload = "–" if r.payload_ratio is None else f"{r.payload_ratio:.1f}"
        table.add_row(r.tier, payload, f"{r.resident_ratio:.2f}", f"{r.resident_bytes:,}", shown("kl_nats", r.kl_nats))
    return table


def cache_costs(rows: list[CacheCostRow]) -> Table:
    """Time per token, prefill and process memory by tier."""
    first = rows[0]
    title = f"time at {first.time_context:,} tokens, memory at {first.memory_context:,} ({first.memory_kind})"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    asynchronous = first.memory_kind.startswith("CUDA")  # a host's clock then counts waiting for the prefill itself
    share = "prefill longer" if asynchronous else "compress / prefill"
    for name in ("tier", "s/token", "x dense", share, "peak MB", "resident"):
        table.add_column(name, justify="left" if name == "tier" else "right")
    for r in rows:
        coded = r.token_s is not None
        table.add_row(
            r.tier,
            f"{r.token_s:.3f}" if coded else "",
            f"{r.token_ratio:.2f}" if coded else "1",
            f"{100 * (r.prefill_ratio - 1 if asynchronous else r.compress_share_of_prefill):.1f} %" if coded else "",
            f"{r.peak_memory_bytes / 1e6:.0f}",
            f"{r.resident_ratio:.2f}" if r.resident_ratio is not None else "",
        )
    return table


def error_rates(result: SimulationResults) -> Table:
    """What the gate says of synthetic runs."""
    title = f"{result.runs:,} runs each of {result.samples} samples a side, limit {100 * result.limit:g} %"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("noise", "true change", "regression", "pass", "inconclusive"):
        table.add_column(name, justify="left" if name == "noise" else "right")
    for r in result.rows:
        shares = (f"{100 * r[k]:.1f} %" for k in ("regression", "pass", "inconclusive"))
        table.add_row(f"{100 * r.noise:g} %, {r.shape}", f"{100 * r.change:+g} %", *shares)
    return table


def launch_settings(rows: list[KernelRow]) -> Table:
    """Times of kernels by launch settings."""
    table = Table(title="launch settings", title_justify="left", box=None, padding=(0, 1))
    for name in ("kernel", "batch", "settings", "µs", "TB/s"):
        table.add_column(name, justify="right" if name in ("batch", "µs", "TB/s") else "left")
    for r in rows:
        chosen = " ".join(f"{k}={v}" for k, v in r.variant.items())
        table.add_row(r.kernel, str(r.batch), chosen, f"{r.time_us:.1f}", f"{r.tb_per_s:.2f}")
    return table


def index_quality(rows: list[MethodRow]) -> Table:
    """Quality by the share of coded tokens that a query may select."""
    first = rows[0]
    title = f"{first.context}-token windows, n = {first.n_tokens:,} scored, base PPL {first.base_ppl:.2f}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("share selected", "ΔPPL", "KL, nats", "top-1", "read, of fp16"):
        table.add_column(name, justify="right")
    for r in rows:
        read = r.index_share_of_fp16 + r.options["share"] * r.codes_share_of_fp16
        table.add_row(
            f"{100 * r.options['share']:g} %{' by layer' if 'shares' in r.options else ''}",
            f"{r.delta_ppl:+.3f}",
            shown("kl_nats", r.kl_nats),
            f"{100 * r.top1:.1f} %",
            f"{100 * read:.1f} %",
        )
    return table


def model_steps(model: str, rows: list[ShapeRow]) -> Table:
    """Steps of one model of real size."""
    table = Table(title=f"\n{model}", title_justify="left", box=None, padding=(0, 1))
    for name in ("step", "tier", "seconds", "s/token", "peak GB", "resident", "logits off", ""):
        table.add_column(name, justify="left" if name in ("step", "tier", "") else "right")
    for r in rows:
        table.add_row(
            r.step,
            r.tier or "",
            f"{r.seconds:.1f}",
            f"{r.token_s:.4f}" if r.token_s is not None else "",
            f"{r.peak_memory_bytes / 1e9:.1f}" if r.peak_memory_bytes else "",
            f"{r.resident_ratio:.2f}" if r.resident_ratio else "",
            f"{r.logit_distance:.3f}" if r.logit_distance is not None else "",
            "" if r.ok else Text("failed", style="red"),
        )
    return table


def packet_times(row: PacketTimesRow) -> Table:
    """Prefill, pack and unpack times of one prompt."""
    table = Table(title=f"{row.context:,} tokens, median of {row.runs} runs", title_justify="left", box=None)
    for name in ("", "seconds", "range"):
        table.add_column(name, justify="right" if name else "left")
    for label, key in (("prefill", "prefill_s"), ("prefill and pack", "pack_s"), ("unpack", "unpack_s")):
        low, high = row[f"{key}_range"]
        table.add_row(label, f"{row[key]:.2f}", f"{low:.2f}–{high:.2f}")
    table.add_row("unpack / prefill", Text(f"{row.unpack_over_prefill:.2f}", style="bold"), "")
    return table


def method_label(row: MethodRow) -> str:
    options = row.options
    parts = [row.method]
    if "profile" in options:
        parts.append(f"from {options['profile'].rsplit('/', 1)[-1]}")
    if "target_ratio" in options:
        parts.append(f"{options['target_ratio']:g}:1")
    if options.get("tier") in ("hot", "warm"):
        parts.insert(1, options["tier"])
    if "step_scale" in options:
        parts.append(f"step x{options['step_scale']:g}")
    if "bound" in options:
        parts.append(f"KL ≤ {options['bound']:g}")
    if "bits" in options:
        parts.append(f"{options['bits']} bits")
    if options.get("adaptive_tables"):
        parts.append("adaptive")
    if options.get("exact_bits") == 8:
        parts.append("int8 window")
    return " ".join(parts)


def coder_speed(result: CoderResults) -> Table:
    """Sizes and speed of the entropy coder and of general compressors on the same symbols."""
    checks = result.checks
    title = f"\n{checks['blocks']:,} random blocks: {checks['bytes_differ']} with other bytes, {checks['wrong_on_cpu']} wrong on the CPU, {checks['wrong_on_device']} on the device"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name in ("shape", "coder", "tokens", "bytes", "encode GB/s", "decode GB/s"):
        table.add_column(name, justify="left" if name in ("shape", "coder") else "right")
    for r in result.rows:
        label = r.coder if r.warps is None else f"{r.coder}, {r.warps} warps"
        tokens = f"{r.context:,}" + (f" × {r.batch}" if r.batch > 1 else "")
        table.add_row(r.model, label, tokens, f"{r.bytes:,}", f"{r.encode_gb_s:.2f}", f"{r.decode_gb_s:.2f}")
    return table


def scale_runs(rows: list[ScaleRow]) -> Table:
    """Calibrations of real size: measured time and peak, and the plan's peak."""
    table = Table(
        title="Calibration of real sizes (measured; plan predicted)", title_justify="left", box=None, padding=(0, 1)
    )
    for name in ("part", "GPUs", "seconds", "peak GB", "plan GB", "profile MB"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    for r in rows:
        if r["part"] in ("quality", "predicted"):
            continue
        if not r.get("ok"):
            table.add_row(r["part"], str(r.get("gpus", "")), r.get("error", "")[:40])
            continue
        if r["part"] == "scaling":
            table.add_row(f"scaling, efficiency {r['efficiency']:.2f}", str(r["gpus"]), f"{r['seconds_shared']:.0f}")
            continue
        sizes = (r["peak_bytes"] / 1e9, r["plan"]["peak_bytes"] / 1e9, r["profile_bytes"] / 1e6)
        table.add_row(r["part"], str(r["gpus"]), f"{r['seconds']:.0f}", *(f"{size:.1f}" for size in sizes))
    return table
