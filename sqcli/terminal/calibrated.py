"""What `sq show` prints, and its HTML page."""

from __future__ import annotations

import html

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from spectralquant.profile.view import ProfileView
from sqcli.figures import DIGITS, shown
from sqcli.terminal.heatmap import heatmap
from sqcli.terminal.plot import sparkline

KINDS = ("key", "value")
NARROW, WIDE = 16, 40  # characters of a spectrum, so that lines fit 80 columns


def profile_view(view: ProfileView, width: int) -> list[RenderableType]:
    """Heatmaps of rank, bits, captured energy and entropy, and median spectra."""
    dim = view.variance.shape[-1]
    parts: list[RenderableType] = [_heading(view)]
    for kind, name in enumerate(KINDS):
        parts.append(heatmap(f"{name} rank", view.rank[kind], f"of {dim}", width, DIGITS["rank"], (0, dim)))
        parts.append(heatmap(f"{name} bits", view.bits[kind], "bits/scalar", width, DIGITS["bits"]))
        parts.append(
            heatmap(f"{name} energy above the water level", 100 * view.captured(kind), "%", width, DIGITS["energy"])
        )
    parts.append(heatmap("attention entropy", view.head_entropy, "nats", width, DIGITS["entropy"]))
    parts.append(_spectra(view, width))
    parts.append(_bit_histogram(view))
    return parts


def layer_view(view: ProfileView, layer: int) -> list[RenderableType]:
    """One row a head and kind."""
    view.require_layer(layer)
    dim = view.variance.shape[-1]
    table = Table(title=f"Layer {layer}", title_justify="left", box=None, padding=(0, 1))
    for name in ("head", "kind", f"rank of {dim}", "bits/scalar", "energy", "entropy,\nnats", "spectrum (log)"):
        table.add_column(name, justify="left" if name.startswith(("kind", "spec")) else "right", no_wrap=True)
    for head in range(view.rank.shape[2]):
        for kind, name in enumerate(KINDS):
            log = log_variance(view.variance[kind, layer, head])
            table.add_row(
                str(head),
                name,
                shown("rank", view.rank[kind, layer, head]),
                shown("bits", view.bits[kind, layer, head]),
                f"{shown('energy', view.captured(kind)[layer, head])} %",
                shown("entropy", view.head_entropy[layer, head]),
                sparkline(log, log.min(), log.max(), NARROW),
            )
    return [_heading(view), table]


def head_view(view: ProfileView, layer: int, head: int) -> list[RenderableType]:
    """The spectrum of one head, component by component."""
    view.require_layer(layer)
    view.require_head(head)
    parts: list[RenderableType] = [_heading(view)]
    for kind, name in enumerate(KINDS):
        variance = view.variance[kind, layer, head]
        log = log_variance(variance)
        share = np.cumsum(variance) / max(float(variance.sum()), 1e-30)
        parts.append(
            Text.assemble(
                (f"Layer {layer} head {head} {name}s  ", "bold"),
                f"rank {view.rank[kind, layer, head]:.0f} of {len(variance)}, {view.bits[kind, layer, head]:.2f} bits/scalar, "
                f"entropy {view.head_entropy[layer, head]:.2f} nats\n  variance  ",
                sparkline(log, log.min(), log.max(), WIDE),
                f"  10^{log.max():.1f} to 10^{log.min():.1f}\n  captured  ",
                sparkline(share, 0, 1, WIDE, "green"),
                f"  {100 * share[0]:.0f} % in 1, {100 * share[min(7, len(share) - 1)]:.0f} % in 8\n",
            )
        )
    return parts


def diff_view(one: ProfileView, other: ProfileView) -> list[RenderableType]:
    """Two domains of one model side by side."""
    require_same_shape(one, other)
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = _names(one, other)
    for column in ("", names[0], names[1], "difference"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for kind, name in enumerate(KINDS):
        for label, attribute in (("rank", "mean_rank"), ("bits/scalar", "bits")):
            a, b = (float(getattr(v, attribute.removeprefix("mean_"))[kind].mean()) for v in (one, other))
            table.add_row(
                f"mean {name} {label}",
                shown(attribute, a),
                shown(attribute, b),
                "+" * (b >= a) + shown(attribute, b - a),
            )
    a, b = float(one.head_entropy.mean()), float(other.head_entropy.mean())
    table.add_row("mean attention entropy, nats", f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}")
    for tier in one.sidecar.tiers.keys() & other.sidecar.tiers.keys():
        a, b = one.sidecar.tiers[tier], other.sidecar.tiers[tier]
        if a.step and b.step:
            table.add_row(f"{tier} step", f"{a.step:.3g}", f"{b.step:.3g}", f"{100 * (b.step / a.step - 1):+.0f} %")
    parts: list[RenderableType] = [
        Text(f"{one.sidecar.text.source} against {other.sidecar.text.source}", style="bold"),
        table,
    ]
    for kind, name in enumerate(KINDS):
        change = other.bits[kind] - one.bits[kind]
        limit = max(float(np.abs(change).max()), 1e-6)
        parts.append(
            heatmap(f"{name} bits, second minus first", change, "bits/scalar", 80, DIGITS["bits"], (-limit, limit))
        )
    return parts


def _heading(view: ProfileView) -> Text:
    s = view.sidecar
    g = s.model
    return Text.assemble(
        (view.stem.name, "bold"),
        f"  {g.name}, {g.layers} layers × {g.kv_heads} KV heads × {g.head_dim}\n",
        (
            f"{s.calibration.steps} steps of {s.text.window} tokens of {s.text.source}; metric {s.calibration.metric}, "
            f"span {s.calibration.span}, {s.tensor_bytes / 1e6:.0f} MB",
            "dim",
        ),
        overflow="fold",
    )


def _spectra(view: ProfileView, width: int) -> Text:
    out = Text.assemble(("spectra", "bold"), "  variance by component, log scale, median head\n")
    for kind, name in enumerate(KINDS):
        log = np.median(log_variance(view.variance[kind]).reshape(-1, view.variance.shape[-1]), axis=0)
        out.append_text(
            Text.assemble(
                f"  {name:<6} ",
                sparkline(log, log.min(), log.max(), min(64, width - 30)),
                f" 10^{log.max():.1f} to 10^{log.min():.1f}\n",
            )
        )
    return out


def _bit_histogram(view: ProfileView) -> Text:
    edges, counts = bit_histogram(view)
    out = Text.assemble(("bits per scalar, heads", "bold"), "\n")
    top = max(max(c) for c in counts.values())
    for i in range(len(edges) - 1):
        out.append(f"  {shown('bits', edges[i])}–{shown('bits', edges[i + 1])} ")
        for (name, count), colour in zip(counts.items(), ("cyan", "magenta"), strict=True):
            bar = "█" * round(20 * count[i] / max(top, 1))
            out.append_text(Text(f"{bar:<21}", style=colour))
            out.append(f"{count[i]:>3} {name} ")
        out.append("\n")
    return out


def bit_histogram(view: ProfileView) -> tuple[list[float], dict[str, list[int]]]:
    edges = np.linspace(0, float(view.bits.max()) + 1e-9, 9)
    return edges.tolist(), {f"{n}s": np.histogram(view.bits[k], edges)[0].tolist() for k, n in enumerate(KINDS)}


def log_variance(variance: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(variance, 1e-12))


def require_same_shape(one: ProfileView, other: ProfileView) -> None:
    from spectralquant.errors import InputError

    if one.rank.shape != other.rank.shape:
        raise InputError(
            f"--diff compares two profiles of one model; {one.stem.name} is for {one.sidecar.model.name}, "
            f"{other.stem.name} for {other.sidecar.model.name}."
        )


def _names(one: ProfileView, other: ProfileView) -> tuple[str, str]:
    a, b = one.stem.name, other.stem.name
    return (a, b) if a != b else (html.unescape(one.sidecar.text.source), other.sidecar.text.source)
