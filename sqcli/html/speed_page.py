"""`sq profile` as sections of an HTML page: how times grow, tables, memory, the device's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectralquant.results.schema import Results
from sqcli.html.charts import xy_chart
from sqcli.html.page import Page
from sqcli.terminal.speed import context_text, crossover_text, peak_name

Row = dict[str, Any]
OURS = ("spectral_decode", "spectral_index_decode")


def speed_sections(page: Page, name: str, result: Results) -> None:
    """Curves of time and of speed-up over context and batch, then every figure."""
    predicted = result["provenance"].get("device") is None
    field = "predicted_us" if predicted else "time_us"
    rows = [
        r for r in result["rows"] if r.get(field) and r["kernel"] not in ("spectral_compress", "spectral_reconstruct")
    ]
    said = "predicted, not timed" if predicted else f"measured on {result['provenance']['device']}"
    title = f"{name}: {result['shape']['name']}, {said}"
    best = _fastest_dense(rows, field)
    contexts, batches = (sorted({r[k] for r in rows}) for k in ("context", "batch"))
    for axis, other, values in (("context", "batch", batches), ("batch", "context", contexts)):
        if len(contexts if axis == "context" else batches) < 2:
            continue
        for value in _few(values):
            here = [r for r in (*best, *rows) if r[other] == value and (r["kernel"] in OURS or r in best)]
            series: dict[str, list[tuple[float, float]]] = {}
            for r in here:
                label = r["kernel"] if r["kernel"] in OURS else "fastest dense"
                series.setdefault(label, []).append((r[axis], r[field]))
            chart = xy_chart(
                {k: sorted(v) for k, v in series.items()},
                "context, tokens" if axis == "context" else "batch",
                "time, µs",
                log_x=True,
                log_y=True,
            )
            page.figure(f"{title}; time by {axis} at {other} {value:,}", chart)
    _tables(page, name, title, result, field)


def _fastest_dense(rows: Sequence[Row], field: str) -> list[Row]:
    dense = [r for r in rows if r["kernel"] not in OURS and r.get("correct", True)]
    cells = dict.fromkeys((r["context"], r["batch"]) for r in dense)
    return [min((r for r in dense if (r["context"], r["batch"]) == c), key=lambda r: r[field]) for c in cells]


def _few(values: Sequence[int]) -> list[int]:
    """First, middle and last."""
    return sorted({values[0], values[len(values) // 2], values[-1]})


def _tables(page: Page, name: str, title: str, result: Results, field: str) -> None:
    head = (
        "Kernel",
        "Context",
        "Batch",
        "µs",
        "Spread",
        "MB",
        "TB/s",
        f"Of {peak_name(result)}",
        "Against dense",
        "Error",
    )
    table = [
        head
        if field == "time_us"
        else (*head[:3], "Predicted µs", "Measured µs", "MB", "Of dense bytes", "Predicted against dense")
    ]
    for r in result["rows"]:
        if field == "time_us" and "failed" in r:
            table.append((r["kernel"], f"{r['context']:,}", str(r["batch"]), "–", *("",) * 5, r["failed"]))
        elif field == "time_us":
            low, high = r["time_spread"]
            gain = f"{r['speedup']:.2f}x" if r.get("speedup") else ""
            table.append(
                (
                    r["kernel"],
                    f"{r['context']:,}",
                    str(r["batch"]),
                    f"{r['time_us']:.1f}",
                    f"{low:.1f}–{high:.1f}",
                    f"{r['bytes_read'] / 1e6:.1f}",
                    f"{r['tb_per_s']:.2f}",
                    f"{100 * r['peak_share']:.0f} %",
                    gain,
                    f"{r['error']:.1e}" + ("" if r["correct"] else " WRONG"),
                )
            )
        else:
            gain = r["predicted_speedup"]
            table.append(
                (
                    r["kernel"],
                    f"{r['context']:,}",
                    str(r["batch"]),
                    f"{r['predicted_us']:.1f}",
                    "" if r.get("measured_us") is None else f"{r['measured_us']:.1f}",
                    f"{r['bytes_read'] / 1e6:.1f}",
                    f"{100 * r['bytes_share_of_dense']:.1f} %",
                    "" if gain is None else f"{gain:.2f}x",
                )
            )
    page.table(title, table)
    if result["end_to_end"]:
        table = [("Method", "Batch", "ms/token", "Tokens/s", "Against dense", "Amdahl allows", "Of that")]
        for r in (r for r in result["end_to_end"] if "failed" not in r):
            more = ("", "", "")
            if "speedup" in r:
                more = (f"{r['speedup']:.2f}x", f"{r['ideal_tokens_per_s']:.0f}", f"{100 * r['share_of_ideal']:.0f} %")
            table.append((r["method"], str(r["batch"]), f"{r['step_ms']:.2f}", f"{r['tokens_per_s']:.0f}", *more))
        page.table(
            f"{name}: whole decode steps at {result['end_to_end'][0]['context']:,} tokens, random weights", table
        )
    table = [("Method", "Context", "Batch", "GB", "Against bf16", "Longest context that fits")]
    for r in result["memory"]:
        cells = (f"{r['context']:,}", str(r["batch"]), f"{r['bytes'] / 1e9:.2f}", f"{r['ratio']:.1f}")
        table.append((r["method"], *cells, context_text(r)))
    page.table(f"{name}: bytes held, counted from layouts, all layers", table)
    facts = {f"{r['kernel']}, batch {r['batch']}": f"from {crossover_text(r)} tokens on" for r in result["crossover"]}
    if facts:
        page.facts(f"{name}: faster than the fastest dense kernel", facts)
    state = result["telemetry"]
    if state is not None and state["after"] is not None:
        found = {k: f"{state['before'][k]} → {state['after'][k]}" for k in state["after"]}
        page.facts(f"{name}: the device before and after", found | {"verdict": state["verdict"]["why"]})
