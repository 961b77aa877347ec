"""`sq profile` in the terminal: a table a context and batch, memory, whole steps, the device's state."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.results.schema import BenchResults
from spectralquant.results.speed import CrossoverRow, KernelRow, MemoryRow, StepRow, Telemetry
from sqcli.terminal.plot import log_plot

OURS = ("spectral_decode", "spectral_index_decode")
SPEED = "speed vs\ndense"


def speed_view(result: BenchResults) -> list[RenderableType]:
    """Everything one screen should say."""
    shape, predicted = result["shape"], result["provenance"]["device"] is None
    device = f"predicted for {result['provenance']['device_model']}" if predicted else result["provenance"]["device"]
    group = shape["heads"] // shape["kv_heads"]
    head = f"\n{shape['name']}{', ' if predicted else ' on '}{device}: {shape['kv_heads']} KV heads x {shape['head_dim']}, {group} queries each"
    parts: list[RenderableType] = [Text(head, style="bold")]
    if predicted:
        parts.append(Text(prediction_note(result), "yellow"))
    else:
        parts.append(Text(peaks_text(result.peaks)))
    measured_on = result["provenance"].get("device")
    make = _predicted_table if predicted else functools.partial(_table, device=measured_on, peak=peak_name(result))
    cells = [r for r in result["rows"] if r["kernel"] != "spectral_compress"]
    for context, batch in dict.fromkeys((r["context"], r["batch"]) for r in cells):
        parts.append(make([r for r in cells if (r["context"], r["batch"]) == (context, batch)], context, batch))
    parts += context_plots(cells, "predicted_us" if predicted else "time_us")
    parts += [compress_text(r) for r in result["rows"] if r["kernel"] == "spectral_compress"]
    if result["end_to_end"]:
        parts.append(_steps(result["end_to_end"]))
    parts.append(_memory(result))
    if result["crossover"]:
        found = ", ".join(f"{r['kernel']} batch {r['batch']}: {crossover_text(r)}" for r in result["crossover"])
        parts.append(Text(f"\nfaster than the fastest dense kernel from so many tokens on: {found}"))
    if result["telemetry"] is not None:
        parts.append(_telemetry(result["telemetry"]))
    return parts


def _new_table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def prediction_note(result: BenchResults) -> str:
    """What predicted figures rest on, and how far off they were where that is known."""
    fit = result.get("fit")
    if fit is None:
        return "Predicted by a roofline, nothing here was timed; launches cost nothing in it."
    note = (
        f"Predicted, nothing here was timed on this machine: bytes and flops, with launch and latency fitted to a measured "
        f"{fit['device']} (a time is off by {100 * fit['median_error']:.0f} % in the median, {100 * fit['worst_error']:.0f} % at worst)."
    )
    other = result["provenance"].get("device_model")
    return note if other == fit["device"] else f"{note} Whether they hold on {other} was not measured."


def peaks_text(peaks: dict[str, float]) -> str:
    """The measured ceilings; files of earlier versions know no reads and writes alone."""
    kinds = [kind for kind in ("copy", "read", "write") if f"{kind}_tb_per_s" in peaks]
    rates = ", ".join(f"{kind} {peaks[f'{kind}_tb_per_s']:.2f}" for kind in kinds)
    return f"measured peaks: {rates} TB/s, matmul {peaks['matmul_tflops']:.0f} TFLOP/s"


def peak_name(result: BenchResults | dict[str, Any]) -> str:
    """What `peak_share` is a share of: the fastest rate of memory, in files of earlier versions a copy's."""
    peaks = result.get("peaks") or {}
    return "peak" if "read_tb_per_s" in peaks else "copy"


def _table(rows: Sequence[KernelRow], context: int, batch: int, device: str | None, peak: str) -> Table:
    from spectralquant.bench.fit import shipped_fit
    from spectralquant.bench.prediction import predicted_beside

    beside = predicted_beside(rows, device, shipped_fit())
    predicted = ["predicted\nµs"] if beside else []
    columns = ("kernel", "µs", "±", *predicted, "MB", "TB/s", f"of {peak}", SPEED)
    good = sorted((r for r in rows if "failed" not in r), key=lambda r: r["time_us"])
    n = good[0]["n"] if good else 0
    table = _new_table(f"\ncontext {context:,}, batch {batch}; medians of {n} graph replays", columns)
    for r in good:
        ours = r.kernel.startswith("spectral")
        table.add_row(
            Text(r["kernel"], style="bold cyan" if ours else ""),
            f"{r['time_us']:.1f}",
            f"{50 * (r['time_spread'][1] - r['time_spread'][0]) / r['time_us']:.1f}%",
            *([f"{beside[r['kernel']]:.1f}" if r["kernel"] in beside else ""] if beside else []),
            f"{r['bytes_read'] / 1e6:.1f}",
            f"{r['tb_per_s']:.2f}",
            f"{100 * r['peak_share']:.0f}%",
            _against(r),
        )
    for r in rows:
        if "failed" in r:
            table.add_row(
                Text(r["kernel"], style="dim"), *("–",) * (len(columns) - 2), Text(r["failed"][:13], style="dim")
            )
    return table


def context_plots(rows: Sequence[KernelRow], field: str) -> list[Text]:
    """Time by context where there are at least three, for the smallest and the largest batch: ours and the fastest dense."""
    good = [r for r in rows if r.get(field) and r.correct is not False]
    if len({r.context for r in good}) < 3:
        return []
    plots = []
    for batch in sorted({min(r.batch for r in good), max(r.batch for r in good)}):
        curves: dict[str, dict[int, float]] = {}
        for r in (r for r in good if r.batch == batch):
            name = r.kernel if r.kernel in OURS else "fastest dense"
            if r.kernel in OURS or not r.kernel.startswith("spectral"):
                points = curves.setdefault(name, {})
                points[r.context] = min(r[field], points.get(r.context, r[field]))
        title = Text(f"\ntime by context, batch {batch}\n", style="bold")
        points_of = {name: sorted(points.items()) for name, points in curves.items()}
        plots.append(title.append_text(log_plot(points_of, "context, tokens", "µs", width=72, height=16)))
    return plots


def _against(row: KernelRow) -> Text | str:
    if not row["correct"]:
        return Text(f"WRONG: error {row['error']:.1e}", style="bold red")
    return "" if row["speedup"] is None else f"{row['speedup']:.2f}x"


def _predicted_table(rows: Sequence[KernelRow], context: int, batch: int) -> Table:
    dense = next((r.get("measured_us") for r in rows if r["predicted_speedup"] is None), None)
    measured = ("measured\nµs", SPEED) if dense else ()
    columns = ("kernel", "predicted\nµs", "MB", "bytes vs\ndense", SPEED, *measured)
    table = _new_table(f"\ncontext {context:,}, batch {batch}, predicted", columns)
    for r in rows:
        time = r.get("measured_us")
        cells = ("–" if time is None else f"{time:.1f}", "" if time in (None, dense) else f"{dense / time:.2f}x")
        table.add_row(
            r["kernel"],
            f"{r['predicted_us']:.1f}",
            f"{r['bytes_read'] / 1e6:.1f}",
            f"{100 * r['bytes_share_of_dense']:.1f} %",
            "" if r["predicted_speedup"] is None else f"{r['predicted_speedup']:.2f}x",
            *(cells if dense else ()),
        )
    return table


def compress_text(row: KernelRow) -> Text:
    """One line about coding a block."""
    if not row.correct:
        return Text(f"\nspectral_compress is WRONG: {100 * row.error:.2f} % of codes differ", style="bold red")
    return Text(
        f"\ncoding 128 tokens of all layers: {row.time_us:.0f} µs, {100 * row.share_of_prefill:.2f} % of the "
        f"{row.prefill_us:.0f} µs their linear layers take"
    )


def _steps(rows: Sequence[StepRow]) -> Table:
    context = rows[0].context
    columns = ("method", "batch", "ms/token", "tokens/s", "speed vs dense", "Amdahl allows", "of that")
    table = _new_table(f"\nwhole decode steps at {context:,} tokens, random weights, CUDA graphs", columns)
    for r in rows:
        if r.failed:
            table.add_row(r.method, str(r.batch), Text(r.failed, style="red"))
            continue
        ours = r.speedup is not None
        table.add_row(
            Text(r.method, style="bold cyan" if ours else ""),
            str(r.batch),
            f"{r.step_ms:.2f}",
            f"{r.tokens_per_s:.0f}",
            f"{r.speedup:.2f}x" if ours else "",
            f"{r.ideal_tokens_per_s:.0f}" if ours else "",
            f"{100 * r.share_of_ideal:.0f} %" if ours else "",
        )
    return table


def _memory(result: BenchResults) -> Table:
    context = result["memory"][0]["context"]
    rows = [r for r in result["memory"] if r["context"] == context]
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    size = result["device_memory"] / 1e9
    columns = ("method", *(f"batch {b}" for b in batches), f"longest context\nbatch {batches[0]}")
    table = _new_table(
        f"\nGB held at {context:,} tokens, counted from layouts, all layers; longest context in {size:.0f} GB", columns
    )
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        table.add_row(method, *(f"{r['bytes'] / 1e9:.2f}" for r in mine), context_text(mine[0]))
    return table


def context_text(row: MemoryRow) -> str:
    """The longest context that fits."""
    return "any" if row.longest_context is None else f"{row.longest_context:,}"


def crossover_text(row: CrossoverRow) -> str:
    """`4,100`, `≤ 2,048`, or that it never was."""
    if row.tokens is None:
        return "never"
    return ("≤ " if row.bound == "at most" else "") + f"{row.tokens:,}"


def _telemetry(state: Telemetry) -> Text:
    after = state.after
    if after is None:
        return Text(f"\nINCONCLUSIVE: {state.verdict.why}", style="yellow")
    line = (
        f"\n{after['sm_mhz']} MHz, memory {after['memory_mhz']} MHz, {after['power_w']:.0f} W, {after['temperature_c']} °C, "
        f"{after['memory_used'] / 1e9:.0f} of {after['memory_total'] / 1e9:.0f} GB: {state.verdict.why}"
    )
    if state.verdict.conclusive:
        return Text(line, style="dim")
    return Text(f"{line}\nINCONCLUSIVE", style="yellow")
