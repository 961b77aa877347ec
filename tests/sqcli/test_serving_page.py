"""Pages of serving files hold what the files are about: figures by length and by number of sequences, too."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from spectralquant.results.files import read_results
from sqcli.html.report import report_page

RESULTS = Path(__file__).resolve().parents[2] / "profiles/results"
FILES = ("serving-cpu", "serving-h100", "serving-hot-cpu", "serving-hot-h100", "serving-hot-8b-h100")


def text_of(name: str, change=lambda raw: raw, folder: Path = RESULTS) -> str:
    raw = change(json.loads((RESULTS / f"{name}.json").read_text()))
    file = folder / f"{name}.json"
    if folder != RESULTS:
        file.write_text(json.dumps(raw))
    page = report_page([(file, read_results(file))]).render()
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


@pytest.mark.parametrize("name", FILES)
def test_every_way_fault_and_figure_of_the_summary_is_there(name):
    raw = json.loads((RESULTS / f"{name}.json").read_text())
    said = text_of(name)
    assert all(fault in said for fault in raw["faults"])
    assert all(key.replace("_", " ") in said for key, value in raw["summary"].items() if value is not None)
    named = [r["way"] for r in raw["rows"] if r.get("kl_nats") or r.get("pages") or r.get("first_token_s")]
    assert named and all(way in said for way in named)


def test_figures_by_length_and_number_are_shown_with_their_units():
    said = " ".join(text_of("serving-h100").split())
    raw = json.loads((RESULTS / "serving-h100.json").read_text())
    row = next(r for r in raw["rows"] if r["way"] == "8b/spectral")
    assert "32,768, s" in said and f"{row['long_first_token_s']['32768']:.3g}" in said
    speed = " ".join(text_of("serving-hot-8b-h100").split())
    hot = next(r for r in json.loads((RESULTS / "serving-hot-8b-h100.json").read_text())["rows"] if "hot" in r["way"])
    assert "64 together, tokens/s" in speed and f"{hot['decode_tokens_per_s']['64']:,.0f}" in speed


def test_a_table_without_a_figure_is_left_out(tmp_path):
    def nothing_long(raw):
        for row in raw["rows"]:
            row["long_first_token_s"], row["long_over_recompute"] = {}, {}
        return raw

    assert "time to the first token of longer prompts" in text_of("serving-h100")
    assert "time to the first token of longer prompts" not in text_of("serving-h100", nothing_long, tmp_path)
    assert "what was restored" not in text_of("serving-hot-8b-h100"), "only the length of prompts is known of these"
