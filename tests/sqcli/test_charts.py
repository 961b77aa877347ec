"""Charts of pages: what a library would say about them is said to no user."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sqcli.html.charts import bar_chart, heatmap_chart, line_chart


@pytest.mark.parametrize(
    "chart",
    [
        lambda: heatmap_chart(np.arange(6.0).reshape(2, 3), "layer", "head"),
        lambda: line_chart({"keys": [1.0, 2.0]}, "x", "y"),
        lambda: bar_chart([0.0, 1.0, 2.0], {"keys": [1, 2]}, "x", "y", "{:.0f}".format),
    ],
    ids=["heatmap", "line", "bar"],
)
def test_charts_are_drawn_without_warnings(chart):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<svg" in str(chart())
