"""`sq show` as an HTML page."""

from __future__ import annotations

from functools import partial

import numpy as np

from spectralquant.profile.view import ProfileView
from sqcli.figures import shown
from sqcli.html.charts import BANDS, bar_chart, heatmap_chart, line_chart
from sqcli.html.page import Page
from sqcli.terminal.calibrated import KINDS, bit_histogram, log_variance, require_same_shape


def profile_page(view: ProfileView, other: ProfileView | None) -> Page:
    """The same as one HTML page."""
    side = view.sidecar
    page = Page(
        f"SpectralQuant profile {view.stem.name}",
        f"{side.model.name} on {side.text.source}, {side.calibration.steps} steps, {side.calibration.metric} metric",
    )
    dim = view.variance.shape[-1]
    if side.tiers:
        rows = [("Tier", "Target", "Predicted ratio", "Measured payload ratio", "ΔPPL", "KL, nats/token", "Top-1, %")]
        for name, tier in side.tiers.items():
            m = tier.measured or {}
            rows.append(
                (
                    name,
                    tier.target,
                    shown("predicted_ratio", tier.predicted_ratio),
                    shown("payload_ratio", m.get("payload_ratio")),
                    shown("delta_ppl", m.get("delta_ppl")),
                    shown("kl_nats", m.get("kl_nats")),
                    shown("top1", m.get("top1")),
                )
            )
        page.table("Tiers: predicted from tables, measured on held-out text", rows)
    for kind, name in enumerate(KINDS):
        page.figure(
            f"{name.title()} rank by layer and head, of {dim}",
            heatmap_chart(view.rank[kind], "layer", "head", (0, dim)),
        )
        page.figure(f"{name.title()} bits per scalar", heatmap_chart(view.bits[kind], "layer", "head"))
        page.figure(
            f"{name.title()} weighted energy above the water level, %",
            heatmap_chart(100 * view.captured(kind), "layer", "head"),
        )
    page.figure("Attention entropy, nats", heatmap_chart(view.head_entropy, "layer", "head"))
    page.figure(
        "Spectra: log10 variance of component, median and 10–90 % of heads",
        line_chart(_spectrum_bands(view), "component", "log10 variance", BANDS),
    )
    page.figure(
        "Heads by bits per scalar", bar_chart(*bit_histogram(view), "bits per scalar", "heads", partial(shown, "bits"))
    )
    if other is not None:
        require_same_shape(view, other)
        for kind, name in enumerate(KINDS):
            page.figure(
                f"{name.title()} bits: {other.sidecar.text.source} minus {side.text.source}",
                heatmap_chart(other.bits[kind] - view.bits[kind], "layer", "head"),
            )
    page.facts(
        "Provenance",
        {
            "Model": f"{side.model.name} ({side.model.architecture}), weights {side.model.weights_sha256_bfloat16[:16]}",
            "Text": f"{side.text.source}, {side.text.tokens:,} tokens, SHA-256 {side.text.sha256[:16]}",
            "Profile": f"{side.tensor_bytes / 1e6:.1f} MB, SHA-256 {side.tensors_sha256[:16]}",
            "Run": f"{side.run.get('created', '')} on {side.run.get('device', '')}, {side.run.get('command') or 'library call'}",
        },
    )
    return page


def _spectrum_bands(view: ProfileView) -> dict[str, list[float]]:
    out = {}
    for kind, name in enumerate(KINDS):
        log = log_variance(view.variance[kind]).reshape(-1, view.variance.shape[-1])
        for label, q in (("median", 50), ("90 %", 90), ("10 %", 10)):
            out[f"{name}s {label}"] = np.percentile(log, q, axis=0).tolist()
    return out
