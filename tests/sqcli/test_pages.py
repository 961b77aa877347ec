"""HTML pages: everything fits its card on phone, tablet and desktop, and says what it shows in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser_for_tests import CHROMIUM, too_wide

from spectralquant.results.files import read_results
from sqcli.html.charts import tick, xy_chart
from sqcli.html.page import Page, flat
from sqcli.html.report import report_page

RESULTS = sorted((Path(__file__).resolve().parents[2] / "profiles" / "results").glob("*.json"))


@pytest.fixture(scope="module")
def report() -> str:
    return report_page([(p, read_results(p)) for p in RESULTS]).render()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_its_card(report, dark):
    assert too_wide(report, 360, 768, 1280, dark=dark) == {360: [], 768: [], 1280: []}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_browser_test_can_fail():
    page = Page("t", "s")
    page.table("a table", [("a", "b"), ("1", "2")])
    wide = page.render().replace("<table", '<table style="min-width:900px"')
    assert too_wide(page.render(), 360) == {360: []}
    seen = too_wide(wide, 360, 1280)
    assert seen[360] and not seen[1280]


def test_a_report_of_several_files_has_a_list_of_contents(report):
    anchors = re.findall(r'<a href="#([^"]+)"', report)
    assert len(anchors) == len(RESULTS)
    assert all(f'id="{a}"' in report for a in anchors)


def test_no_python_reaches_the_reader(report):
    text = re.sub(r"<(style|svg).*?</\1>", "", report, flags=re.DOTALL)
    assert not re.search(r"\{&#39;|\{'|\bNone\b", text)


def test_what_is_not_known_takes_no_line():
    assert flat({"a": None, "b": {"c": None, "d": 0}, "e": [1, None], "f": False}) == {
        "b, d": "0",
        "e": "1, –",
        "f": "False",
    }


def test_nothing_is_fetched(report):
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", report)
    assert "<script" not in report


def test_text_is_escaped():
    page = Page("<b>t", "s")
    page.table("<i>", [("a", "b"), ("<script>", "1")])
    page.facts("f", {"k": "<x>"})
    assert "<script>" not in page.render()
    assert "<b>t" not in page.render()


@pytest.mark.parametrize(
    ("values", "allowed"),
    [((4, 9.96, 22.3, 80), r"[125]0*"), ((2048, 8192, 262144), r"[125]0*K|[125]00?K"), ((0.0011, 0.08), r"0\.0*[125]")],
)
def test_logarithmic_ticks_are_round(values, allowed):
    svg = xy_chart({"a": [(v, v) for v in values]}, "x", "y", log_x=True, log_y=True).svg
    ticks = [t for t in re.findall(r"<text[^>]*>\s*([^<\s]+)\s*</text>", svg) if t[0].isdigit()]
    assert ticks
    assert all(re.fullmatch(allowed, t) for t in ticks), ticks


def test_axes_are_named():
    svg = xy_chart({"a": [(1, 1), (2, 3)]}, "tokens", "time, µs").svg
    assert "tokens" in svg
    assert "time, µs" in svg


def test_colours_follow_the_page():
    svg = xy_chart({"a": [(1, 1), (2, 3)]}, "x", "y").svg
    assert "var(--c1)" in svg
    assert "#0000" not in svg


def test_flat_names_inner_values():
    assert flat({"peaks": {"copy": 1}, "list": [1, 2]}) == {"peaks, copy": "1", "list": "1, 2"}


@pytest.mark.parametrize(("value", "text"), [(2048, "2.048K"), (100, "100"), (0.005, "0.005"), (2e6, "2M")])
def test_ticks_are_short(value, text):
    assert tick(value) == text


def test_facts_of_several_things_are_numbered():
    one, two = {"source": "a.txt"}, {"source": "b.txt"}
    assert flat({"sources": [one]}) == {"sources, source": "a.txt"}
    assert flat({"sources": [one, two]}) == {"sources, 1, source": "a.txt", "sources, 2, source": "b.txt"}


def test_a_table_that_fits_a_desktop_stays_a_table():
    """The headline's has thirteen narrow columns."""
    page = report_page([(Path("headline.json"), read_results(RESULTS[0].with_name("headline.json")))]).render()
    first = re.search(r'<table class="(\w+)">', page)
    assert first is not None and first[1] == "widest"
