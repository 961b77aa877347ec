"""Results as plain JSON: `{schema_version, kind, provenance, rows}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.quality import HeadRow, LayerRow, MethodRow, TextCostRow
from spectralquant.results.schema import Results

if TYPE_CHECKING:
    from spectralquant.calibration.plan import MemoryPlan
    from spectralquant.profile.model import CalibrationProfile
    from spectralquant.profile.view import ProfileView


def check_result(profile: CalibrationProfile, checks: Sequence[TextCostRow]) -> Results:
    """A row a text of what a profile takes on it."""
    side = profile.sidecar
    facts = {"path": str(profile.path), "tensors_sha256": side.tensors_sha256}
    return results_file("text-cost", checks, provenance(model=side.model.name), profile=facts)


def calibration_result(profile: CalibrationProfile, checks: Sequence[TextCostRow] = ()) -> Results:
    """Held-out rows, one a tier; then what the calibration found and how long each stage took."""
    side = profile.sidecar
    rows = [MethodRow(tier=name, **(tier.measured or {})) for name, tier in side.tiers.items()]
    return results_file(
        "calibrate",
        rows,
        side.run,
        profile={"path": str(profile.path), "tensors_sha256": side.tensors_sha256, "tensor_bytes": side.tensor_bytes},
        model=side.model.model_dump(exclude={"weights_sketch"}),
        text=side.text.model_dump(),
        calibration=side.calibration.model_dump(),
        tiers={name: tier.model_dump(exclude={"measured"}) for name, tier in side.tiers.items()},
        layers=layer_rows(profile.heads.rank.numpy(), profile.heads.bits.numpy()),
        checks=[row.as_json() for row in checks],
    )


def plan_result(plan: MemoryPlan, model: str) -> Results:
    """A row a stage of a memory plan; all figures are predicted."""
    rows = [{"stage": stage.name, "peak_bytes": stage.peak, "parts": stage.parts} for stage in plan.stages]
    summary = {
        "model": model,
        "predicted": True,
        "peak_bytes": plan.peak,
        "host_bytes": plan.host,
        "profile_bytes_at_most": plan.profile,
        "span": plan.span,
        "recompute": plan.settings.recompute,
        "sample_windows": plan.samples,
    }
    return results_file("plan", rows, provenance(), plan=summary)


def layer_rows(rank: Any, bits: Any) -> list[LayerRow]:
    """Mean rank and bits per layer of `[2, L, Hk]` arrays."""
    return [
        LayerRow(
            layer=i,
            key_rank=float(rank[0, i].mean()),
            value_rank=float(rank[1, i].mean()),
            key_bits=float(bits[0, i].mean()),
            value_bits=float(bits[1, i].mean()),
        )
        for i in range(rank.shape[1])
    ]


def show_result(view: ProfileView, other: ProfileView | None, layer: int | None, head: int | None) -> Results:
    """One row a head (of the chosen layer, head), with the other profile's figures beside it."""
    rows = []
    layers, heads = view.rank.shape[1:]
    for i in range(layers) if layer is None else [layer]:
        for h in range(heads) if head is None else [head]:
            for kind, name in enumerate(("key", "value")):
                row = HeadRow(
                    layer=i,
                    head=h,
                    kind=name,
                    rank=int(view.rank[kind, i, h]),
                    bits=float(view.bits[kind, i, h]),
                    entropy_nats=float(view.head_entropy[i, h]),
                    captured_energy=float(view.captured(kind)[i, h]),
                )
                if head is not None:
                    row.spectrum = [float(v) for v in view.variance[kind, i, h]]
                if other is not None:
                    row.other_rank, row.other_bits = int(other.rank[kind, i, h]), float(other.bits[kind, i, h])
                rows.append(row)
    return results_file(
        "show", rows, provenance(), profile=view.sidecar.model_dump(exclude={"run": True, "model": {"weights_sketch"}})
    )
