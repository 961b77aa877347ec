"""The table that opens the results: in the terminal, on a page, and in the docs, with the same cells."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from research.readme import headline
from spectralquant.results.files import results_file
from sqcli.html.report import report_page
from sqcli.terminal.headline import headline_tables, quality_grid, speed_grid

ROW = {"model": "builtin:m", "kl_nats": 0.01, "context": 2048, "n_tokens": 4096, "n_windows": 2}
RATIOS = (
    ("spectral", "own", "streaming", 80.0, "interpolated", 90_000_000),
    ("spectral", "own", "prompt", 99.0, "interpolated", 90_000_000),
    ("spectral", "general", "streaming", 41.26, "at least", 50_000_000),
    ("spectral", "foreign python", "streaming", 9.0, "interpolated", 50_000_000),
    ("turboquant", None, "streaming", 4.5, "interpolated", None),
    ("turboquant outliers", None, "streaming", 5.5, "interpolated", None),
    ("h2o", None, "streaming", None, "never", None),
    ("h2o", None, "prompt", None, "never", None),
)


def results():
    rows = [
        ROW
        | {
            "text": text,
            "method": m,
            "profile": p,
            "mode": mode,
            "payload_ratio": ratio,
            "bound": bound,
            "profile_bytes": size,
        }
        for text in ("wikitext", "bible")
        for m, p, mode, ratio, bound, size in RATIOS
    ]
    times = {"encode_gb_s": 1.5, "decode_gb_s": 2.5, "first_token_s": 0.0123, "prefill_s": 0.02}
    speed = [
        {
            "model": "builtin:m",
            "method": "spectral",
            "options": {"tier": "cold", "target_ratio": 65.0},
            "device": "GPU X",
        }
        | {"context": 2048, "blocks": 14, **times}
    ]
    point = {"method": "spectral", "options": {"tier": "cold", "variant": "own"}, "model": "builtin:m", "text": "bible"}
    figures = {
        "context": 2048,
        "n_tokens": 9,
        "payload_ratio": 70.0,
        "whole_cache_ratio": 12.0,
        "kl_nats": 0.01,
        "delta_ppl": 0.1,
    }
    return results_file("headline", rows, {}, speed=speed, points=[point | figures])


def test_a_row_a_model_and_text_and_a_column_a_method():
    head, *rows = quality_grid(results())
    assert head[3:] == ("spectral, own profile", "MB", "general profile", "foreign profile", "turboquant", "h2o")
    assert rows[0] == ("m", "wikitext", "2", "80.0", "90", "≥ 41.3", "9.0", "5.5", "–") and rows[1][1] == "bible"


def test_speeds_are_named():
    assert speed_grid(results().speed)[1] == ("m", "spectral for 65", "1.50", "2.50", "12 ms", "20 ms")


def test_the_terminal_shows_it_within_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    for part in headline_tables(results()):
        console.print(part)
    text = console.export_text()
    assert "80.0" in text and "GPU X" in text and "≥ 41.3" in text and max(map(len, text.splitlines())) <= 80


def test_the_page_opens_with_it():
    text = report_page([(Path("headline.json"), results())]).render()
    assert text.index("payload ratio at KL 0.01") < text.index("<svg") and "≥ 41.3" in text and "GPU X" in text


def comparison(ratio=4.0):
    point = {"model": "builtin:smollm2-135m", "context": 2048, "n_tokens": 4096, "n_windows": 2, "mode": "streaming"}
    figures = {"payload_ratio": ratio, "whole_cache_ratio": 3.0, "delta_ppl": 0.1, "coded_tokens": 1000}
    figures |= {"coded_bytes": 23_040_000 / ratio, "encode_s": 0.01, "decode_s": 0.02}
    rows = [
        point | figures | {"method": "kivi", "options": {"bits": bits}, "kl_nats": kl}
        for bits, kl in ((4, 0.005), (2, 0.02))
    ]
    return results_file("compare", rows, {"device": "GPU Y"})


def test_the_docs_table_says_which_file_a_figure_is_from(monkeypatch):
    """What the study measured comes first; what it did not, from the studies of single questions; else a question mark."""
    files = {"headline": results(), "compare-smollm2-wikitext2": comparison()}
    monkeypatch.setattr(headline, "load", files.get)
    monkeypatch.setattr(headline, "is_there", files.__contains__)
    for row in (*files["headline"].rows, *files["headline"].speed):
        row.model = "builtin:smollm2-135m"
    for row in files["headline"].speed:
        row.context = 2048
    text = headline.sceptic()
    ours, kivi = (
        next(line for line in text.splitlines() if line.startswith(f"| wikitext | {name} "))
        for name in ("**spectral**", "kivi")
    )
    assert [c.strip().replace("&nbsp;", " ") for c in ours.split("|")[3:-1]] == ["80.0", "≥ 41.3", "9.0", "90"]
    assert [c.strip() for c in kivi.split("|")[3:-1]] == ["4.0<sup>a</sup>", "–", "–", "–"]
    costs = [line for line in text.splitlines() if line.startswith("| smollm2-135m | ")]
    assert [[c.strip().replace("&nbsp;", " ") for c in line.split("|")[2:-1]] for line in costs] == [
        ["**spectral**", "1.50", "2.50", "12 ms"],
        ["turboquant", "?", "?", "?"],
        ["kivi", "2.30<sup>a</sup>", "1.15<sup>a</sup>", "?"],
    ]
    assert "`?`: not measured" in text
    assert "| bible | **spectral** | 80.0 |" in text and "| h2o | – |" in text
    assert (
        "no letter: `headline.json`: 2 windows of 2,048 tokens a text, speeds on GPU X; a `compare-smollm2-wikitext2.json`"
        in text
    )
    for row in files["headline"].speed:
        row.other_bytes, row.host_load, row.host_cores = 54_000_000_000, 22.7, 64
    assert (
        "speeds on GPU X while other runs held 54 GB of the card and the load of the host's 64 cores was 23;"
        in headline.sceptic()
    )
    del files["headline"]
    text = headline.sceptic()
    assert (
        "no letter: `compare-smollm2-wikitext2.json`: 2 windows of 2,048 tokens, GPU Y." in text
        and "headline.json" not in text
    )


def test_where_all_is_measured_there_is_no_question_mark(monkeypatch):
    """A method that reaches the KL at no budget has no profile bytes; speeds are told once a model and method."""
    found = results()
    found.rows.append(
        found.rows[0].updated(method="kvtc", profile=None, payload_ratio=None, bound="never", profile_bytes=None)
    )
    for row in (*found.rows, *found.speed):
        row.model = "builtin:smollm2-135m"
    found.speed += [found.speed[0].updated(method=m, options={"bits": 4}) for m in ("turboquant", "kvtc")]
    files = {"headline": found}
    monkeypatch.setattr(headline, "load", files.get)
    monkeypatch.setattr(headline, "is_there", files.__contains__)
    text = headline.sceptic()
    assert "?" not in text and "| wikitext | kvtc | – | – | – | – |" in text
    assert text.count("12&nbsp;ms") == 3


@pytest.mark.parametrize("part", ["rows", "speed"])
def test_a_file_with_missing_parts_is_shown(part):
    result = results()
    setattr(result, part, [])
    assert report_page([(Path("headline.json"), result)]).render() and headline_tables(result) is not None
