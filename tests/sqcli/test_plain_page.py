"""Files of any kind on a page: a table a part with its own columns, figures with units, and a file that is wrong is named."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from spectralquant.errors import InputError
from spectralquant.results.files import read_results, reading, results_file
from sqcli.html.plain_page import figure, label
from sqcli.html.report import report_page

RESULTS = Path(__file__).resolve().parents[2] / "profiles/results"


def page_of(*files: Path) -> str:
    return report_page([(file, read_results(file)) for file in files], reading).render()


def test_a_part_is_a_table_of_its_own_columns():
    page = page_of(RESULTS / "calibrate-scale.json")
    said = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
    rows = json.loads((RESULTS / "calibrate-scale.json").read_text())["rows"]
    assert all(f"calibrate-scale: {part}" in said for part in {row["part"] for row in rows})
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert len(cells) > 500 and cells.count("–") < len(cells) / 5
    peak = next(row["peak_bytes"] for row in rows if row["part"] == "70b-one-card")
    assert f"{peak / 1e9:.2f} GB" in said and said.count("git dirty") == 1


@pytest.mark.parametrize(
    "key, value, heading, text",
    [
        ("first_token_s", 0.25, "first token, s", "0.25"),
        ("step_ms", 3.0, "step, ms", "3"),
        ("peak_bytes", 130919883776, "peak bytes", "130.92 GB"),
        ("profile_bytes", 2_507_422, "profile bytes", "2.5 MB"),
        ("reduced_bytes", 0, "reduced bytes", "0"),
        ("windows", 1_024, "windows", "1,024"),
        ("solver", "eigh", "solver", "eigh"),
        ("recompute", False, "recompute", "False"),
        ("error", None, "error", "–"),
    ],
)
def test_figures_have_their_units(key, value, heading, text):
    assert (label(key), figure(value, key)) == (heading, text)


def test_only_the_file_that_is_wrong_is_named(tmp_path):
    good, bad = RESULTS / "serving-hot-cpu.json", tmp_path / "bad.json"
    raw = json.loads((RESULTS / "compare-smollm2-wikitext2.json").read_text())
    for row in raw["rows"]:
        del row["context"]
    bad.write_text(json.dumps(raw))
    with pytest.raises(InputError) as refused:
        page_of(good, bad)
    assert str(bad) in str(refused.value) and good.name not in str(refused.value)


def test_a_fault_of_a_page_of_our_own_is_no_damaged_file(monkeypatch):
    monkeypatch.setattr("sqcli.html.report.serving_sections", lambda *_: int("x"))
    file = RESULTS / "serving-hot-cpu.json"
    with pytest.raises(ValueError, match="invalid literal"):
        report_page([(file, read_results(file))])


def test_what_a_producer_left_out_is_as_the_kind_has_it(tmp_path):
    raw = json.loads((RESULTS / "serving-hot-cpu.json").read_text())
    for name in ("faults", "engine", "summary", "settings"):
        raw.pop(name, None)
    file = tmp_path / "less.json"
    file.write_text(json.dumps(raw))
    result = read_results(file)
    assert result["faults"] == [] and result["engine"] == {} and "faults" not in result
    assert result.as_json() == raw
    for name in ("nothing", "telemetry"):
        with pytest.raises(KeyError):
            result[name]
    gated = results_file("gate", [], {})
    assert gated.get("measured", True) is True, "what is no list was not said"
    assert "less" in page_of(file)
