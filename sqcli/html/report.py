"""One self-contained HTML page from any results files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from spectralquant.evaluation.match import curve_name, matched, pareto
from spectralquant.results.schema import Results
from sqcli.figures import shown
from sqcli.html.charts import xy_chart
from sqcli.html.cold_page import cold_sections
from sqcli.html.page import Page, flat
from sqcli.html.plain_page import figure, plain_sections
from sqcli.html.serving_page import serving_sections
from sqcli.html.speed_page import speed_sections
from sqcli.terminal.compare import against, bound_text, row_name, task_text
from sqcli.terminal.headline import quality_grid, speed_grid

COLUMNS = (
    ("payload_ratio", "Payload"),
    ("whole_cache_ratio", "Cache"),
    ("resident_bytes", "MB held"),
    ("delta_ppl", "ΔPPL"),
    ("kl_nats", "KL"),
    ("top1", "Top-1, %"),
    ("needle", "Needle, %"),
    ("encode_s", "Enc."),
    ("decode_s", "Dec."),
)


def report_page(
    results: Sequence[tuple[Path, Results]], around: Callable[[Path], AbstractContextManager[None]] = nullcontext
) -> Page:
    """Sections for every results file, in order: headline, curves, tables, provenance. around: what a file's sections are made in."""
    kinds = ", ".join(dict.fromkeys(result["kind"].removeprefix("spectralquant.") for _, result in results))
    page = Page(
        "SpectralQuant report", f"{len(results)} {'results file' if len(results) == 1 else 'results files'}: {kinds}"
    )
    for path, result in results:
        with around(path):
            _headline(page, path.stem, result)
    for path, result in results:
        with around(path):
            page.chapter(path.stem)
            _sections(page, path.stem, result)
            _provenance(page, path.stem, result)
    return page


def _sections(page: Page, name: str, result: Results) -> None:
    kind = result["kind"].removeprefix("spectralquant.")
    rows = [r for r in result["rows"] if "failed" not in r]
    if kind in ("compare", "cold", "tiers", "quality"):
        _quality(page, name, result, rows)
    elif kind == "headline":
        points = result["points"]
        for model, text in dict.fromkeys((r["model"], r["text"]) for r in points):
            rows = [r for r in points if (r["model"], r["text"]) == (model, text)]
            _quality(page, f"{model.removeprefix('builtin:')}, {text}", result, rows)
    elif kind == "calibrate":
        _calibration(page, name, result)
    elif kind == "profile":
        speed_sections(page, name, result)
    elif kind == "cold-speed":
        cold_sections(page, name, result)
    elif kind == "serving":
        serving_sections(page, name, result)
    elif kind == "verdicts":
        _verdicts(page, name, result)
    else:
        plain_sections(page, name, rows)


def _headline(page: Page, name: str, result: Results) -> None:
    """What a file says before all curves: every method at equal quality."""
    if result["kind"].endswith("headline"):
        kl = result["rows"][0]["kl_nats"] if result["rows"] else 0
        page.table(f"{name}: payload ratio at KL {kl:g} nats/token; MB: the own profile's", quality_grid(result))
        if result["speed"]:
            first = result["speed"][0]
            title = f"{name}: {first['device']}, one window of {first['context']:,} tokens, block by block"
            page.table(title, speed_grid(result["speed"]))
    if not result["kind"].endswith("compare"):
        return
    rows = result.get("matched") or matched([r for r in result["rows"] if "failed" not in r], 0.01)
    table = [("Method", "Window", "Protocol", "Payload ratio", "")]
    for r in rows:
        ours = next((o for o in rows if _same_test(o, r) and o["method"] == "spectral cold"), None)
        if r["payload_ratio"] is not None:
            table.append((r["method"], f"{r['context']:,}", _mode(r), bound_text(r), against(ours, r)))
    if len(table) > 1:
        page.table(f"{name}: payload ratio at KL {rows[0]['kl_nats']:g} nats/token", table)


def _quality(page: Page, name: str, result: Results, rows: Sequence[dict[str, Any]]) -> None:
    front = {id(r) for r in pareto(rows)}
    for context, mode in dict.fromkeys((r["context"], _mode(r)) for r in rows):
        here = [r for r in rows if (r["context"], _mode(r)) == (context, mode)]
        curves: dict[str, list[tuple[float, float]]] = {}
        for r in here:
            if r["method"] != "none" and 0 < r["payload_ratio"] < 1e6 and r["kl_nats"] > 0:
                point = (r["payload_ratio"], r["kl_nats"])
                curves.setdefault(curve_name(r), []).append(point)
        protocol = _protocol(here[0], rows)
        title = f"{name}: {context}-token windows{protocol}, {here[0]['n_tokens']:,} scored tokens"
        if curves:
            chart = xy_chart(
                {k: sorted(v) for k, v in curves.items()},
                "payload ratio",
                "KL, nats/token",
                log_x=True,
                log_y=True,
            )
            page.figure(f"{title}; lower right is better", chart)
        columns = [c for c in COLUMNS if any(r.get(c[0]) is not None for r in here)]
        table = [("Method", *(c[1] for c in columns))]
        for r in sorted(here, key=lambda r: r["kl_nats"]):
            cells = (shown(key, r.get(key)) for key, _ in columns)
            table.append((f"{'● ' if id(r) in front else ''}{row_name(r)}", *cells))
        page.table(f"{title}, sorted by KL in nats/token; ● on the Pareto front; times in s per 1,000 tokens", table)
    if result["kind"].endswith("compare"):
        rows_at = result.get("matched") or matched(rows, 0.01)
        table = [("Method", "Window", "Protocol", "Payload ratio", "Cache ratio", "")]
        for r in rows_at:
            ours = next((o for o in rows_at if _same_test(o, r) and o["method"] == "spectral cold"), None)
            cache = shown("whole_cache_ratio", r.get("whole_cache_ratio"))
            table.append((r["method"], str(r["context"]), _mode(r), bound_text(r), cache, against(ours, r)))
        if rows_at:
            page.table(f"{name}: at KL {rows_at[0]['kl_nats']:g} nats/token", table)
        _tasks(page, name, rows)
        if result["failed"]:
            page.facts(f"{name}: failed", {row_name(r): r["failed"] for r in result["failed"]})


def _tasks(page: Page, name: str, rows: Sequence[Any]) -> None:
    """Per cent of trials answered right, the uncompressed model's in brackets: a table a length."""
    rows = [r for r in rows if r.get("tasks")]
    every = dict.fromkeys(task for r in rows for task in r["tasks"])
    for length in dict.fromkeys(task.partition("@")[2] for task in every):
        names = [task for task in every if task.partition("@")[2] == length]
        table = [("Method", "Protocol", *(task.partition("@")[0] for task in names))]
        for (mode, label), r in {(_mode(r), row_name(r)): r for r in reversed(rows)}.items():
            table.append((label, mode, *(task_text(r["tasks"][task]) if task in r["tasks"] else "–" for task in names)))
        where = f" at {int(length):,} tokens" if length else ""
        page.table(f"{name}: tasks{where}, % right (uncompressed)", [table[0], *reversed(table[1:])])


def _mode(r: Any) -> str:
    return r.get("mode") or "streaming"


def _same_test(a: Any, b: Any) -> bool:
    return (a["context"], _mode(a)) == (b["context"], _mode(b))


def _protocol(r: Any, rows: Sequence[Any]) -> str:
    """Which protocol a row was measured in, where a file has both."""
    return f", {_mode(r)}" if len({_mode(o) for o in rows}) > 1 else ""


def _calibration(page: Page, name: str, result: Results) -> None:
    layers = result["layers"]
    series = {
        "key rank": [r["key_rank"] for r in layers],
        "value rank": [r["value_rank"] for r in layers],
    }
    points = {k: list(enumerate(v)) for k, v in series.items()}
    page.figure(f"{name}: mean rank by layer", xy_chart(points, "layer", "rank", markers=False))
    bits = {"key bits": [r["key_bits"] for r in layers], "value bits": [r["value_bits"] for r in layers]}
    points = {k: list(enumerate(v)) for k, v in bits.items()}
    page.figure(f"{name}: mean bits per scalar by layer", xy_chart(points, "layer", "bits", markers=False))
    plain_sections(page, name, result["rows"])


def _verdicts(page: Page, name: str, result: Results) -> None:
    """What a gate decided; what did not pass comes first."""
    order = ("regression", "inconclusive", "not compared", "skipped", "pass")
    table = [("Metric", "Baseline", "Now", "Change", "Limit", "Verdict", "Why")]
    for r in sorted(result["rows"], key=lambda r: order.index(r["verdict"])):
        figures = (figure(r[k]) for k in ("baseline", "now", "change", "limit"))
        table.append((r["metric"], *figures, r["verdict"], r["why"]))
    counts = ", ".join(f"{n} {kind}" for kind, n in result["counts"].items() if n)
    page.table(f"{name}: {counts}", table)


def _provenance(page: Page, name: str, result: Results) -> None:
    source = {k: v for k, v in result["provenance"].items() if k != "code"}
    facts = {k: v for k, v in flat(source).items() if v}
    first = result["provenance"].get("command") or result["provenance"].get("created") or "details"
    page.facts(f"{name}: provenance", facts, folded=str(first))
