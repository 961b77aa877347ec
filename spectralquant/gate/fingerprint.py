"""What two results must share to be comparable."""

from __future__ import annotations

from typing import Any

from spectralquant.results.schema import Results

FIELDS = ("schema", "kind", "suite", "model_hash", "data_hash", "dtype", "device", "shape", "settings")


def fingerprint(result: Results) -> dict[str, Any]:
    """Of a results file. device: the GPU's name, or "cpu" for any CPU, whose figures do not depend on the model."""
    facts = result.provenance
    on_gpu = bool(facts.get("cuda") or facts.get("driver"))
    data = facts.get("evaluation_sha256") or facts.get("text_sha256") or facts.get("data_sha256")
    return {
        "schema": result.schema_version,
        "kind": result.kind,
        "suite": result.get("suite"),
        "model_hash": facts.get("weights_sha256"),
        "data_hash": data,
        "dtype": facts.get("dtype"),
        "device": facts.get("device") if on_gpu else "cpu",
        "shape": shape.get("name") if isinstance(shape := result.get("shape"), dict) else shape,
        "settings": result.get("settings"),
    }


def mismatches(baseline: Results, current: Results) -> list[str]:
    """Why two results cannot be compared, one sentence a field."""
    before, now = fingerprint(baseline), fingerprint(current)
    return [
        f"{name.replace('_', ' ')} differs: the baseline has {_short(before[name])}, now {_short(now[name])}"
        for name in FIELDS
        if before[name] != now[name]
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
