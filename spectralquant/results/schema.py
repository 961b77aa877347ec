"""What a results file of each kind holds besides `schema_version`, `kind` and `provenance`."""

from __future__ import annotations

from typing import Any

from spectralquant.results.base import Figure, Row
from spectralquant.results.caches import (
    CacheCostRow,
    GeneratedRow,
    PacketRow,
    PacketTimesRow,
    ResidentRow,
    TensorRow,
)
from spectralquant.results.checks import CheckRow, ErrorRateRow, MetricRow, ReportedRow, VerdictRow
from spectralquant.results.quality import (
    ComparedRow,
    HeadRow,
    LayerRow,
    MatchedRow,
    MethodRow,
    NeedleRow,
    ProtocolFacts,
    TextCostRow,
)
from spectralquant.results.serving import ServingRow, SoakRow
from spectralquant.results.speed import (
    CounterRow,
    CrossoverRow,
    GenerateTimeRow,
    KernelRow,
    MemoryRow,
    StepRow,
    Telemetry,
)
from spectralquant.results.studies import (
    ArchitectureRow,
    CoderRow,
    DomainRow,
    DurationRow,
    HeadlineRow,
    MethodSpeedRow,
    PlanRow,
    PredictionRow,
    ScaleRow,
    ShapeRow,
    SpectrumRow,
    SpeedRow,
    TierCost,
)

RESULTS_SCHEMA = 1
PREFIX = "spectralquant."


class Results(Row):
    """A results file. provenance: command, versions, commit, device, hashes of model and text, seed."""

    schema_version: int
    kind: str
    provenance: dict[str, Any]
    rows: list[Any]

    def __getitem__(self, name: str) -> Any:
        """A part of the file; a list or mapping that its producer left out is as the kind has it by default."""
        field = type(self).model_fields.get(self._attribute(name))
        if name not in self and field is not None and isinstance(field.default, (list, dict)):
            return getattr(self, self._attribute(name))
        return super().__getitem__(name)

    @property
    def name(self) -> str:
        """The kind without its prefix."""
        return self.kind.removeprefix(PREFIX)


class CompareResults(Results):
    rows: list[ComparedRow]
    protocol: ProtocolFacts | None = None
    failed: list[ComparedRow] = []
    matched: list[MatchedRow] | None = None


class CalibrateResults(Results):
    rows: list[MethodRow]
    profile: dict[str, Any] = {}
    model: dict[str, Any] = {}
    text: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    tiers: dict[str, dict[str, Any]] = {}
    layers: list[LayerRow] = []
    checks: list[TextCostRow] = []


class TextCostResults(Results):
    rows: list[TextCostRow]
    profile: dict[str, Any] = {}


class ShowResults(Results):
    rows: list[HeadRow]
    profile: dict[str, Any] = {}


class BenchResults(Results):
    rows: list[KernelRow]
    complete: bool = True
    shape: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    device_memory: int | None = None
    memory: list[MemoryRow] = []
    peaks: dict[str, Any] | None = None
    roof: dict[str, Any] | None = None
    end_to_end: list[StepRow] = []
    telemetry: Telemetry | None = None
    crossover: list[CrossoverRow] = []
    fit: dict[str, Any] | None = None


class GateResults(Results):
    rows: list[MetricRow]
    suite: str | None = None
    measured: bool | None = None
    settings: dict[str, Any] | None = None
    telemetry: Telemetry | None = None


class VerdictResults(Results):
    rows: list[VerdictRow]
    mismatch: list[str] = []
    exit_code: int | None = None
    counts: dict[str, int] = {}


class SimulationResults(Results):
    rows: list[ErrorRateRow]
    runs: int
    samples: int
    limit: float


class DoctorResults(Results):
    rows: list[CheckRow]


class ReportResults(Results):
    rows: list[ReportedRow]
    page: str


class PacketResults(Results):
    rows: list[PacketRow]


class InspectResults(Results):
    rows: list[PacketRow | TensorRow]


class GenerateResults(Results):
    """Of `sq generate`, or times of `sq profile --generate`."""

    rows: list[GeneratedRow | GenerateTimeRow]
    complete: bool | None = None
    settings: dict[str, Any] = {}
    summary: dict[str, Figure] = {}


class CounterResults(Results):
    rows: list[CounterRow]


class ColdResults(Results):
    rows: list[MethodRow]
    summary: dict[str, MethodRow | Figure | str] = {}
    needle: list[NeedleRow] = []
    spectrum: list[SpectrumRow] = []
    overhead: dict[str, Figure] = {}
    profile: dict[str, TierCost] = {}
    training: dict[str, Any] | None = None


class DomainResults(Results):
    rows: list[MethodRow]
    table: list[DomainRow] = []


class TierResults(Results):
    rows: list[MethodRow]
    resident: list[ResidentRow] = []


class QualityResults(Results):
    rows: list[MethodRow]
    summary: dict[str, Figure] = {}
    as_calibrated: dict[str, Figure] = {}
    study: dict[str, Any] = {}
    homes: dict[str, Any] = {}
    general: dict[str, Any] | None = None
    texts: list[dict[str, Any]] = []
    later: dict[str, Any] | None = None


class HeadlineResults(Results):
    rows: list[HeadlineRow]
    points: list[MethodRow] = []
    speed: list[MethodSpeedRow] = []
    profiles: list[dict[str, Any]] = []
    study: dict[str, Any] = {}


class IndexResults(Results):
    rows: list[MethodRow]


class PacketStudyResults(Results):
    rows: list[PacketTimesRow]


class CacheResults(Results):
    rows: list[CacheCostRow]


class KernelResults(Results):
    rows: list[KernelRow]
    telemetry: Telemetry | None = None


class ShapeResults(Results):
    rows: list[ShapeRow]
    study: dict[str, Any] = {}


class CoderResults(Results):
    rows: list[CoderRow]
    checks: dict[str, int] = {}
    summary: dict[str, Figure] = {}


class ArchitectureResults(Results):
    rows: list[ArchitectureRow]


class PlanResults(Results):
    rows: list[PlanRow]
    plan: dict[str, Any] = {}


class DurationResults(Results):
    rows: list[DurationRow]


class PredictionResults(Results):
    rows: list[PredictionRow]
    terms: dict[str, Any] = {}
    error: dict[str, Any] = {}
    held_out_error: dict[str, Any] = {}
    roofline_error: dict[str, Any] = {}
    speedup: dict[str, Any] = {}
    measured_in: dict[str, Any] = {}


class ColdSpeedResults(Results):
    rows: list[SpeedRow]
    checks: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    parts: dict[str, Any] = {}


class ColdCostResults(Results):
    rows: list[MethodRow]
    summary: dict[str, Any] = {}


class ScaleResults(Results):
    rows: list[ScaleRow]
    summary: dict[str, Any] = {}
    steps: int | None = None
    window: int | None = None


class ServingResults(Results):
    """Of `sq serve-check`. faults: what the check found, a line each."""

    rows: list[ServingRow]
    summary: dict[str, Figure] = {}
    settings: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    faults: list[str] = []


class SoakResults(Results):
    """A server under load for minutes. faults: what should not have happened, a line each."""

    rows: list[SoakRow]
    summary: dict[str, Figure] = {}
    settings: dict[str, Any] = {}
    faults: list[str] = []


KINDS: dict[str, type[Results]] = {
    "compare": CompareResults,
    "calibrate": CalibrateResults,
    "text-cost": TextCostResults,
    "show": ShowResults,
    "profile": BenchResults,
    "gate": GateResults,
    "verdicts": VerdictResults,
    "gate-simulation": SimulationResults,
    "doctor": DoctorResults,
    "report": ReportResults,
    "pack": PacketResults,
    "unpack": PacketResults,
    "inspect": InspectResults,
    "generate": GenerateResults,
    "counters": CounterResults,
    "cold": ColdResults,
    "serving-codec": ColdResults,
    "domains": DomainResults,
    "tiers": TierResults,
    "quality": QualityResults,
    "headline": HeadlineResults,
    "index": IndexResults,
    "packet": PacketStudyResults,
    "cache": CacheResults,
    "kernels": KernelResults,
    "shapes": ShapeResults,
    "coder": CoderResults,
    "architectures": ArchitectureResults,
    "plan": PlanResults,
    "cold-speed": ColdSpeedResults,
    "cold-costs": ColdCostResults,
    "durations": DurationResults,
    "prediction": PredictionResults,
    "calibrate-scale": ScaleResults,
    "serving": ServingResults,
    "serving-soak": SoakResults,
}
