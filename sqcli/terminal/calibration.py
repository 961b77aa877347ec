"""What `sq calibrate` prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sqcli.terminal.heatmap import heatmap

if TYPE_CHECKING:
    from spectralquant.profile.model import CalibrationProfile

WIDTH = 80


def calibration_view(profile: CalibrationProfile, stem: Path) -> list[RenderableType]:
    """Layer table, heatmaps, tiers with predicted and measured figures, and stage times."""
    rank, bits = profile.heads.rank.numpy(), profile.heads.bits.numpy()
    return [
        layer_table(rank, bits, profile.geometry.head_dim),
        heatmap("key bits", bits[0], "bits/scalar", WIDTH),
        heatmap("value bits", bits[1], "bits/scalar", WIDTH),
        tier_table(profile),
        footer(profile, stem),
    ]


def layer_table(rank, bits, head_dim: int) -> Table:
    """Rank and bits per layer, keys and values, layers folded into two columns of rows."""
    table = Table(
        title=f"Rank (of {head_dim}) and predicted bits per scalar, mean over heads",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1),
    )
    layers = rank.shape[1]
    folds = 2 if layers > 12 else 1
    rows = -(-layers // folds)
    for fold in range(folds):
        for name in ("layer", "K rank", "V rank", "K bits", "V bits"):
            table.add_column(
                name + ("  " if fold < folds - 1 and name == "V bits" else ""), justify="right", no_wrap=True
            )
    for i in range(rows):
        cells: list[str] = []
        for layer in range(i, layers, rows):
            cells += [
                str(layer),
                f"{rank[0, layer].mean():.1f}",
                f"{rank[1, layer].mean():.1f}",
                f"{bits[0, layer].mean():.2f}",
                f"{bits[1, layer].mean():.2f}",
            ]
        table.add_row(*cells)
    return table


def tier_table(profile: CalibrationProfile) -> Table:
    """One column a tier: goal, prediction and held-out measurement."""
    side = profile.sidecar
    table = Table(title="\nTiers", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    names = list(side.tiers)
    for name in names:
        table.add_column(name, justify="right")

    def row(label: str, cell) -> None:
        table.add_row(label, *[cell(side.tiers[n]) for n in names])

    row("target", lambda t: t.target)
    row("predicted payload ratio", lambda t: f"{t.predicted_ratio:.1f}")
    row(
        Text.assemble(("measured, held-out", "bold"), " payload ratio"),
        lambda t: Text(f"{t.measured['payload_ratio']:.1f}", style="bold"),
    )
    row("  whole-cache ratio (sinks, window in)", lambda t: f"{t.measured['whole_cache_ratio']:.1f}")
    row("  ΔPPL", lambda t: f"{t.measured['delta_ppl']:+.3f} (base {t.measured['base_ppl']:.2f})")
    row("  KL, nats/token", lambda t: f"{t.measured['kl_nats']:.4f}")
    row("  top-1 kept", lambda t: f"{100 * t.measured['top1']:.1f} %")
    row("  scored tokens", lambda t: f"{t.measured['n_tokens']:,} in {t.measured['n_windows']} windows")
    row("components kept, K / V", lambda t: f"{100 * t.alive_key:.0f} % / {100 * t.alive_value:.0f} %")
    row(
        "weighted energy captured, K / V",
        lambda t: f"{100 * t.captured_energy_key:.2f} % / {100 * t.captured_energy_value:.2f} %",
    )
    if any(side.tiers[n].without_bits for n in names):
        row("without bits (read as their mean)", lambda t: _some(t.without_bits))
    return table


def _some(names: list[str]) -> str:
    if len(names) < 3:
        return ", ".join(names) or "none"
    return f"{names[0]} and {len(names) - 1} more"


def footer(profile: CalibrationProfile, stem: Path) -> Text:
    """Where the profile is, how big, and where the time went."""
    side = profile.sidecar
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in side.run["stages_s"].items())
    return Text.assemble(
        "\nProfile ",
        (f"{stem}.json", "bold"),
        f" + .safetensors, {side.tensor_bytes / 1e6:.1f} MB, shared by all requests\n",
        (f"{side.calibration.steps} steps of {side.text.window} tokens of {side.text.source}; {stages}", "dim"),
    )
