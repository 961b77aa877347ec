"""`sq study calibrate-scale`: what calibration takes at real sizes, part by part, going on where a results file stands."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from research.scale.predicted import predicted_rows
from research.scale.quality import CURVE_CASES, KEYS, QualityRun, QualityStudy, kl_at
from research.scale.runs import Row, calibration, seconds_per_step, streamed, together
from spectralquant.models.load import LoadedModel
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.text.tokens import TokenText

PARTS = ("8b", "8b-small", "scaling", "70b", "70b-one-card", "steps", "forms", "predicted")
QUALITY = ("steps", "forms")  # both are rows of part `quality`
COMMON = ("--window", "2048", "--dtype", "bfloat16", "--offline")
EIGHT = ("--model", "random:llama-3.1-8b", *COMMON, "--device", "cuda")
SEVENTY = ("--model", "random:llama-3.1-70b", *COMMON, "--device", "all", "--tier", "cold")
STEPS = 100
SEVENTY_STEPS = 6
STREAMED_STEPS = 2
SMALL_CARD = "24GB"
EQUAL_RATIO = 40.0
Progress = Callable[[str, int, int], None]
Save = Callable[[dict[str, Any]], None]


def scale_study(
    parts: Sequence[str],
    rows: list[Row],
    load: Callable[[], tuple[LoadedModel, TokenText]],
    save: Save,
    progress: Progress = lambda stage, done, total: None,
    model: str = "builtin:smollm2-135m",
    quality: QualityStudy = QualityStudy(),  # noqa: B008 (frozen)
    anew: bool = True,
) -> dict[str, Any]:
    """Measure `parts`, keeping the `rows` of an earlier run for the others (and for other models than `model`); `save` gets
    the results after every row. Without `anew` rows that went well are kept and only what is missing is measured. Of quality,
    `steps` is the curve over steps and shrinkage, `forms` all else.
    """
    gpus = torch.cuda.device_count()
    facts = provenance(**device_facts(torch.device("cuda" if gpus else "cpu")), gpus=gpus)
    kept = lambda row: not anew and row["part"] != "predicted" and row.get("ok", True)  # noqa: E731
    other = lambda row: row["part"] == "quality" and row["model"] != model  # noqa: E731
    rows = [row for row in rows if _part_of(row) not in parts or other(row) or kept(row)]

    def keep(row: Row) -> None:
        rows.append(row)
        save(_result(rows, facts))

    for number, part in enumerate(parts):
        progress(part, number, len(parts))
        for row in _part(part, rows, gpus, load, quality, progress):
            keep(
                {
                    "part": "quality" if part in QUALITY else part,
                    **row,
                    "created": facts["created"],
                    "commit": facts["git_commit"],
                    "dirty": facts["git_dirty"],
                }
            )
    return _result(rows, facts)


def joined(rows: list[Row], beside: Sequence[list[Row]]) -> list[Row]:
    """Rows of several files in one: a part, and a part of quality of a model, is what the last file has of it."""
    whole = lambda row: (_part_of(row), row["model"] if row["part"] == "quality" else None)  # noqa: E731
    for some in beside:
        new = {whole(row) for row in some}
        rows = [row for row in rows if whole(row) not in new] + some
    return rows


def _part_of(row: Row) -> str:
    """Which of `PARTS` a row belongs to."""
    if row["part"] != "quality":
        return str(row["part"])
    return QUALITY[0 if row.get("varied") in CURVE_CASES else 1]


def _part(
    part: str, rows: list[Row], gpus: int, load: Callable[[], Any], quality: QualityStudy, progress: Progress
) -> Iterator[Row]:
    if part in QUALITY:
        loaded, text = load()
        done = [r for r in rows if r["part"] == "quality"]
        for some in QualityRun(loaded, text, quality, progress, done, curve=part == "steps").rows():
            yield from some
    elif part == "predicted":
        full = _row(rows, "8b")
        yield from predicted_rows(seconds_per_step(full) if full else None, full["stages_s"]["bases"] if full else None)
    elif not gpus:
        yield {"ok": False, "error": "not run: there is no GPU"}
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield from _runs(part, Path(folder), gpus, {row.get("gpus") for row in rows if row["part"] == part})


def _runs(part: str, folder: Path, gpus: int, done: set[int | None]) -> Iterator[Row]:
    """The runs of a part, but for those on as many GPUs as are `done`."""
    steps = ("--steps", str(STEPS))
    if part != "scaling" and done:
        return
    if part == "8b":
        yield calibration((*EIGHT, *steps, "--tier", "all"), folder / "p")
    elif part == "8b-small":
        yield calibration((*EIGHT, *steps, "--tier", "cold", "--memory", SMALL_CARD), folder / "p")
    elif part == "70b":
        if gpus < 2:
            yield {"gpus": gpus, "ok": False, "error": "not run: its weights take 141 GB, and there is one GPU"}
        else:
            yield calibration((*SEVENTY, "--steps", str(SEVENTY_STEPS)), folder / "p", gpus)
    elif part == "70b-one-card":
        yield streamed(SEVENTY[1], STREAMED_STEPS, 2048, folder / "row.json")
    elif part == "scaling":
        if gpus > 1 and {2, gpus} - done:
            yield from together(folder / "rows.json", gpus, EIGHT[1], STEPS, 2048)
        for count in (2, 4):
            if count > gpus and count not in done:
                yield {"gpus": count, "ok": False, "error": f"not run: {gpus} GPUs"}


def _row(rows: list[Row], part: str, **like: Any) -> Row | None:
    """The row of a part that went well."""
    fitting = (
        r for r in rows if r["part"] == part and r.get("ok", True) and all(r.get(k) == v for k, v in like.items())
    )
    return next(fitting, None)


def _of_all_steps(row: Row) -> float:
    """Seconds of a run of `STEPS` steps, from one of fewer: its steps as often, its other stages as they were."""
    capture = row["stages_s"]["capture"]
    return row["seconds"] - capture + row["capture_s"]["samples"] + STEPS * seconds_per_step(row)


def _how_known(rows: list[Row], row: Row | None) -> str:
    if row is None:
        return next((r["error"] for r in rows if r["part"] == "70b"), "not run")
    if row["steps"] == STEPS:
        return f"measured on {row['gpus']} GPUs"
    return f"predicted from {row['steps']} steps and all other stages, measured on {row['gpus']} GPUs"


def _result(rows: list[Row], facts: dict[str, Any]) -> dict[str, Any]:
    return results_file("calibrate-scale", list(rows), facts, summary=_summary(rows), steps=STEPS, window=2048)


def _summary(rows: list[Row]) -> dict[str, Any]:
    """The figures that the issue asks for; null where a part was not run. Measured but for what is named predicted."""
    full, small, seventy, alone = (_row(rows, part) for part in ("8b", "8b-small", "70b", "70b-one-card"))
    shares = [abs(row["plan_error"]) for row in (full, small, seventy, alone) if row]

    def efficiency(count: int) -> float | None:
        row = _row(rows, "scaling", gpus=count)
        return row and row["efficiency"]

    return {
        "seconds_8b_100_steps": full and full["seconds"],
        "peak_gb_8b": full and round(full["peak_bytes"] / 1e9, 2),
        "peak_gb_8b_small_card": small and round(small["peak_bytes"] / 1e9, 2),
        "seconds_8b_small_card": small and small["seconds"],
        "profile_mb_8b": full and round(sum(full["profile_bytes_by_tier"][p] for p in ("cold", "heads")) / 1e6, 1),
        "profile_mb_8b_all_tiers": full and round(full["profile_bytes"] / 1e6, 1),
        "plan_error_share": max(shares) if shares else None,
        "scaling_efficiency_2": efficiency(2),
        "scaling_efficiency_4": efficiency(4),
        "seconds_70b_100_steps": seventy and round(_of_all_steps(seventy), 1),
        "seconds_70b_100_steps_is": _how_known(rows, seventy),
        "seconds_per_step_70b_one_card": alone and round(seconds_per_step(alone), 1),
        "peak_gb_70b_one_card": alone and round(alone["peak_bytes"] / 1e9, 2),
        f"kl_at_ratio_{EQUAL_RATIO:g}": _at_ratio([row for row in rows if row["part"] == "quality"]),
    }


def _at_ratio(rows: list[Row]) -> list[Row]:
    """KL of each case at one payload ratio, and the tier's bytes at the measured point nearest to it."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cases.setdefault(tuple(row.get(name) for name in KEYS), []).append(row)
    nearest = lambda row: abs(math.log(row["payload_ratio"] / EQUAL_RATIO))  # noqa: E731
    return [
        dict(zip(KEYS, case, strict=True))
        | {"kl_nats": kl_at(some, EQUAL_RATIO), "tier_bytes": min(some, key=nearest)["tier_bytes"]}
        for case, some in cases.items()
    ]
