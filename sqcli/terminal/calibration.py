"""What `sq calibrate` prints at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sqcli.figures import shown
from sqcli.terminal.outcome import next_text, outcome_text, serving_tiers

if TYPE_CHECKING:
    from spectralquant.profile.model import CalibrationProfile
    from spectralquant.profile.schema import ProfileSidecar
    from spectralquant.results.quality import TextCostRow


def calibration_view(profile: CalibrationProfile, stem: Path) -> list[RenderableType]:
    """What was reached in words, tiers with predicted and measured figures, a layer table, stage times, what to type next."""
    rank, bits = profile.heads.rank.numpy(), profile.heads.bits.numpy()
    return [
        outcome_text(profile.sidecar),
        tier_table(profile.sidecar),
        kept_table(profile.sidecar),
        layer_table(rank, bits, profile.geometry.head_dim),
        footer(profile, stem),
        next_text(stem, tiers=tuple(profile.tiers), serving=serving_tiers(profile.sidecar)),
    ]


def layer_table(rank, bits, head_dim: int) -> Table:
    """Rank and bits per layer, keys and values, layers folded into two columns of rows."""
    table = Table(
        title=f"\nRank (of {head_dim}) and predicted bits per scalar, mean over heads",
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
                shown("mean_rank", rank[0, layer].mean()),
                shown("mean_rank", rank[1, layer].mean()),
                shown("bits", bits[0, layer].mean()),
                shown("bits", bits[1, layer].mean()),
            ]
        table.add_row(*cells)
    return table


def tier_table(side: ProfileSidecar) -> Table:
    """One row a tier: aim, prediction and held-out measurement."""
    measured = [t.measured for t in side.tiers.values() if t.measured]
    title = "\nTiers: fp16 bytes over bytes"
    if measured:
        m = measured[0]
        title += (
            f", on {m['n_tokens']:,} tokens of held-out text\n"
            f"({m['n_windows']} {'window' if m['n_windows'] == 1 else 'windows'}, uncompressed PPL {m['base_ppl']:.2f})"
        )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tier")
    heads = (
        "target",
        "predicted\nratio",
        "measured\nratio",
        "whole\ncache",
        "ΔPPL",
        "KL, nats\nper token",
        "top-1\nkept",
    )
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for name, tier in side.tiers.items():
        m = tier.measured
        cells = ("–",) * 5
        if m:
            cells = (
                Text(shown("payload_ratio", m["payload_ratio"]), style="bold"),
                shown("whole_cache_ratio", m["whole_cache_ratio"]),
                shown("delta_ppl", m["delta_ppl"]),
                Text(shown("kl_nats", m["kl_nats"]), style="bold"),
                f"{shown('top1', m['top1'])} %",
            )
        table.add_row(name, tier.target, shown("predicted_ratio", tier.predicted_ratio), *cells)
    return table


def kept_table(side: ProfileSidecar) -> Table:
    """One row a tier: which part of the components is kept, and of their weighted energy."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("\ntier")
    some = any(t.without_bits for t in side.tiers.values())
    for name in ("components kept\nkeys / values", "weighted energy kept\nkeys / values"):
        table.add_column(name, justify="right", no_wrap=True)
    if some:
        table.add_column("without bits\n(read as their mean)")
    for name, tier in side.tiers.items():
        table.add_row(
            name,
            f"{100 * tier.alive_key:.0f} % / {100 * tier.alive_value:.0f} %",
            f"{100 * tier.captured_energy_key:.2f} % / {100 * tier.captured_energy_value:.2f} %",
            *([_some(tier.without_bits)] if some else []),
        )
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


def check_view(rows: Sequence[TextCostRow]) -> Table:
    """One row a text: real bytes, error against that at home, predicted KL, and the ways that blocks took."""
    table = Table(title="\nOn other text (real bytes; KL predicted from the error)", title_justify="left", box=None)
    for name in ("text", "ratio", "error,\nhome = 1", "outside\nthe basis", "predicted\nKL", "blocks"):
        table.add_column(name, justify="left" if name in ("text", "blocks") else "right", overflow="fold")
    for row in rows:
        home = "–" if row.error_at_home is None else f"{row.error / row.error_at_home:.1f}"
        kl = "–" if row.predicted_kl is None else shown("kl_nats", row.predicted_kl)
        ways = ", ".join(f"{count} {way}" for way, count in row.ways.items())
        outside = "–" if row.outside is None else f"{100 * row.outside:.0f} %"
        ratio = Text(shown("payload_ratio", row.payload_ratio), style="bold")
        table.add_row(row.text, ratio, home, outside, Text(kl, style="red" if row.kept is False else ""), ways)
    promised = next((row.promised_kl for row in rows if row.promised_kl is not None), None)
    broken = sum(row.kept is False for row in rows)
    lines = [] if promised is None else [f"promised: KL {promised:g}"]
    if broken:
        lines.append(
            f"{broken} of {len(rows)} texts would cost over 25 % more: calibrate on text like them, or with --target error="
        )
    table.caption = "; ".join(lines) or None
    table.caption_justify = "left"
    return table
