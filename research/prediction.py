"""Fit `sq profile`'s predictions to a measured profile, and state their error.

`python -m research.prediction` reads profiles/results/profile-h100.json and writes profiles/results/prediction-h100.json and the
terms that the library ships (spectralquant/bench/fit.json).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spectralquant.bench.cell import kernel_traffic
from spectralquant.bench.device.devices import device_named, parse_device
from spectralquant.bench.fit import DENSE, fit_terms, medians, relative_errors
from spectralquant.bench.inputs import CodeSettings, random_matrices
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.models.shapes import parse_shape
from spectralquant.provenance import provenance
from spectralquant.results.files import read_results, results_file

ROOT = Path(__file__).resolve().parent.parent
MEASURED = "profiles/results/profile-h100.json"
SHAPE = ("kv_heads", "heads", "head_dim")
SETTINGS = ("bits", "index_rank", "share", "window")


def fitted(measured: dict[str, Any], device: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A results file with every prediction beside its measurement, and what the library ships of it.

    held_out_error: each context left out of its own fit in turn. roofline: the error without the fitted terms.
    """
    model = parse_device(device)
    rows = _counted(medians(measured), measured, model.processors)
    terms = fit_terms(rows, model.tb_per_s)
    errors = relative_errors(rows, terms, model.tb_per_s)
    held_out: list[float] = []
    for context in sorted({r["context"] for r in rows}):
        others = fit_terms([r for r in rows if r["context"] != context], model.tb_per_s)
        held_out += relative_errors([r for r in rows if r["context"] == context], others, model.tb_per_s)
    roof = [r["bytes_read"] / (model.copy_share * model.tb_per_s) / 1e6 for r in rows]
    for row, bare in zip(rows, roof, strict=True):
        predicted = terms[row["kernel"]].time_us(row["bytes_read"], 0.0, model.tb_per_s)
        row |= {"predicted_us": round(predicted, 2), "roofline_us": round(bare, 2)}
    facts = {
        "terms": {kernel: asdict(t) for kernel, t in terms.items()},
        "error": _spread(errors),
        "held_out_error": _spread(held_out),
        "roofline_error": _spread([abs(b / r["measured_us"] - 1) for r, b in zip(rows, roof, strict=True)]),
        "speedup": _speedups(rows),
        "measured_in": {"file": name, "commit": measured["provenance"].get("git_commit")},
    }
    result = results_file("prediction", rows, provenance() | {"device_model": device}, **facts)
    shipped = {
        "device": device,
        "shape": {k: measured["shape"][k] for k in SHAPE},
        "settings": {k: measured["settings"][k] for k in SETTINGS},
        "terms": facts["terms"],
        "median_error": facts["held_out_error"]["median"],
        "worst_error": facts["held_out_error"]["worst"],
        "measured": [{k: v for k, v in r.items() if k not in ("predicted_us", "roofline_us")} for r in rows],
    }
    return result, shipped


def _counted(rows: list[dict[str, Any]], measured: dict[str, Any], processors: int) -> list[dict[str, Any]]:
    """The rows with their bytes counted as this version counts them: an older one may have left some out."""
    shape = parse_shape(measured["shape"]["name"])
    settings = CodeSettings(**{k: measured["settings"][k] for k in SETTINGS})
    matrices = random_matrices(shape, settings, "cpu")
    out = []
    for row in rows:
        counted = kernel_traffic(shape, matrices, settings, row["batch"], row["context"], processors)
        nbytes = row["bytes_read"] if row["kernel"] == DENSE else counted[row["kernel"]]["bytes"]
        out.append(row | {"bytes_read": nbytes})
    return out


def _spread(errors: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(errors), 4), "worst": round(max(errors), 4)}


def _speedups(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How far a predicted speed-up lies from the measured one, worst case, with the fit and by the roofline alone."""
    dense = {(r["context"], r["batch"]): r for r in rows if r["kernel"] == DENSE}
    pairs = [(dense[r["context"], r["batch"]], r) for r in rows if r["kernel"] != DENSE]

    def worst(field: str) -> float:
        return round(max((d[field] / r[field]) / (d["measured_us"] / r["measured_us"]) for d, r in pairs), 2)

    return {"fitted_over_measured_worst": worst("predicted_us"), "roofline_over_measured_worst": worst("roofline_us")}


def _measured_on(profile: dict[str, Any]) -> str:
    """The device model of a measured profile.

    Raises:
        InputError: none is known by the name of its device.
    """
    name = profile["provenance"].get("device")
    if (model := device_named(name)) is None:
        raise InputError(f"{name} is no device model that is known: give --device-model, as in sq profile.")
    return model.name


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", nargs="?", default=MEASURED, help="Of this checkout where it is not found here.")
    parser.add_argument("--device-model", help="As in sq profile; default: the one that the file was measured on.")
    parser.add_argument("--out", default="profiles/results/prediction-h100.json")
    parser.add_argument("--shipped", default=str(ROOT / "spectralquant" / "bench" / "fit.json"))
    given = parser.parse_args(arguments)
    measured = given.measured if Path(given.measured).exists() else ROOT / given.measured
    profile = read_results(measured).as_json()
    result, shipped = fitted(profile, given.device_model or _measured_on(profile), given.measured)
    write_json(given.out, result.as_json())
    write_json(given.shipped, shipped)
    print(
        f"error of a predicted time, contexts left out in turn: {result['held_out_error']}; speed-ups: {result['speedup']}"
    )


if __name__ == "__main__":
    main()
