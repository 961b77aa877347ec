"""A figure has the same digits in the terminal, in a sentence and on a page."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spectralquant.profile.view import ProfileView
from spectralquant.results.files import read_results
from sqcli.figures import DIGITS, shown
from sqcli.html.profile_page import profile_page
from sqcli.html.report import report_page
from sqcli.terminal.calibrated import head_view, layer_view, profile_view
from sqcli.terminal.compare import comparison_view

RESULTS = Path(__file__).resolve().parents[2] / "profiles" / "results"


def terminal(parts, width=200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_a_comparison_rounds_alike_in_terminal_and_page():
    result = read_results(RESULTS / "compare-smollm2-wikitext2.json")
    said, page = terminal(comparison_view(result, None)), report_page([(Path("compare.json"), result)]).render()
    cells = re.findall(r'<td data-column="(?:Payload|Cache|ΔPPL|KL|Enc\.|Dec\.)">([^<]+)</td>', page)
    assert len(cells) > 30
    assert [cell for cell in cells if cell not in said.split()] == []


def test_small_figures_of_kl_keep_their_digits():
    figures = {0.0: "0.0000", 1.3e-6: "1.3e-06", 9.9e-5: "9.9e-05", 1e-4: "0.0001", 0.0125: "0.0125"}
    assert {value: shown("kl_nats", value) for value in figures} == figures


def test_the_longest_figures_of_a_head_fit_80_columns(small_profile, tmp_path):
    """Each head on a line of its own, the spectrum and its ends, too."""
    small_profile.save(tmp_path / "p")
    view = ProfileView.load(tmp_path / "p")
    layers, heads = view.rank.shape[1:]
    variance = np.broadcast_to(np.geomspace(1e11, 1e-12, 256), (2, layers, heads, 256))
    full = np.full_like(view.rank, 256.0)
    view = dataclasses.replace(view, variance=variance, rank=full, bits=full / 16)
    rows = terminal(layer_view(view, 0), 80).splitlines()
    title = next(i for i, row in enumerate(rows) if row.startswith("Layer 0"))
    assert len(rows) == title + 3 + 2 * heads and all("100" in row for row in rows[title + 3 :])
    rows = terminal(head_view(view, 0, 0), 80).splitlines()
    assert sum("10^11.0 to 10^-12.0" in row for row in rows) == 2 and not any("…" in row for row in rows)


def test_a_profile_rounds_alike_in_terminal_and_page(small_profile, tmp_path):
    small_profile.save(tmp_path / "p")
    view = ProfileView.load(tmp_path / "p")
    said, page = terminal(profile_view(view, 200)), profile_page(view, None).render()
    edges = re.findall(r"^  ([0-9.]+)–([0-9.]+) ", said, flags=re.MULTILINE)
    assert len(edges) == 8
    assert all(
        f">{edge}</text>" in re.sub(r">\s+|\s+<", lambda m: m[0].strip(), page) for pair in edges for edge in pair
    )
    for title, grid in (("key bits", view.bits[0]), ("attention entropy", view.head_entropy)):
        low, high = re.search(rf"^{title}  (\S+) \S+ (\S+) ", said, flags=re.MULTILINE).groups()
        assert (low, high) == (f"{grid.min():.2f}", f"{grid.max():.2f}")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_no_number_is_a_dash(value):
    assert {shown(quantity, value) for quantity in DIGITS} == {"–"}


def test_shares_come_as_parts_of_one_and_uncompressed_has_no_ratio():
    assert (
        shown("top1", 0.985) == "98.5" and shown("payload_ratio", 1e9) == "–" and shown("resident_bytes", 2e6) == "2.0"
    )
