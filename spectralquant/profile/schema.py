"""The JSON sidecar of a profile, checked on load because it comes from outside."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from spectralquant.models.schema import ModelIdentity

SCHEMA_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextShare(_Part):
    """What one of several texts gave to the calibration: its weight in the mix, its tokens and their SHA-256."""

    source: str
    weight: float
    tokens: int
    sha256: str


class TextIdentity(_Part):
    """Which text a profile was calibrated on. tokens and sha256: of the windows; sources: the texts that they hold; blocks: hashes
    of their token ids (`spectralquant.text.overlap`), empty in profiles from before these were kept.
    """

    source: str
    sha256: str
    tokens: int
    window: int
    sources: list[TextShare] = []
    blocks: str = ""


class CalibrationOptions(_Part):
    """How it was calibrated."""

    steps: int
    metric: str
    span: str
    span_width: int
    solver: str
    block: int
    sinks: int
    predict: str
    labels: str
    seed: int
    shrinkage: float = 0.0


class ErrorPoint(_Part):
    """What text of one kind cost, in KL nats a token, at an error (squared base steps a token): as calibrated, or second:
    with every block held to it by a second stage.
    """

    text: str
    error: float
    kl: float
    second: bool = False


class TierSummary(_Part):
    """What a tier should cost (predicted from its tables or bits) and what it cost on held-out text (measured).

    without_bits: layers or heads of a fixed-rate tier whose keys or values are dropped, and read as their mean. searched: the
    loss on the held-out windows that a target in KL or ΔPPL was searched on, which are not those of `measured`. errors: KL of text of several kinds with every block held to an error (see
    `profile.promises`). as_calibrated: error and KL of the cold tier on held-out text where no block is held to anything.
    error_measure: the version of the measure that errors are in (see `profile.promises`).
    """

    target: str
    step: float | None = None
    predicted_ratio: float
    alive_key: float
    alive_value: float
    captured_energy_key: float
    captured_energy_value: float
    importance_r2_key: float | None = None
    importance_r2_value: float | None = None
    centroids: str | None = None
    without_bits: list[str] = []
    searched: float | None = None
    measured: dict[str, Any] | None = None
    errors: list[ErrorPoint] = []
    as_calibrated: ErrorPoint | None = None
    error_measure: int = 1


class ServingInfo(_Part):
    """Of a profile for serving engines: how keys are turned (see `RotaryLayout`); the frequencies are among the tensors."""

    pairs: str
    backwards: bool


class ProfileSidecar(_Part):
    """The whole sidecar. `run` holds what may differ between two equal runs: times, versions, paths.

    serving: set where the profile is for a serving engine's tier and not for caches of transformers.
    sidecar_sha256: of the file's own text with this field empty; files of older versions lack it.
    """

    schema_version: int
    kind: str = "spectralquant.profile"
    sidecar_sha256: str = ""
    tensors_sha256: str
    tensor_bytes: int
    model: ModelIdentity
    text: TextIdentity
    calibration: CalibrationOptions
    tiers: dict[str, TierSummary]
    serving: ServingInfo | None = None
    run: dict[str, Any]
