"""Domain shift: profiles of two domains, each used on both, with and without adaptive tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from research.windows import scored_windows
from spectralquant.calibration.cold.fit import ColdFitter
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.run import CalibrationRun
from spectralquant.evaluation.curve import ratio_at_kl
from spectralquant.evaluation.measure import measure
from spectralquant.methods.base import Method
from spectralquant.methods.coding.spectral import tier_method
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.quality import MethodRow
from spectralquant.results.schema import Results
from spectralquant.results.studies import DomainRow
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText, tokens_sha256

RATIOS = (20.0, 45.0, 90.0)


def domain_study(
    loaded: LoadedModel,
    texts: dict[str, TokenText],
    steps: int,
    window: int,
    windows: int,
    progress: Callable[[str, int, int], None],
    kept: Kept = NOTHING_KEPT,
    part: str = "report",
) -> Results:
    """Calibrate on the first windows of each text, score on the last ones of a part of both."""
    scored = {name: scored_windows(text, steps, window, windows, part) for name, text in texts.items()}
    fitters: dict[str, ColdFitter] = {}
    for number, (name, text) in enumerate(texts.items()):
        settings = CalibrationSettings(steps=steps, window=window, held_out_windows=1, held_out_window=window)
        out = kept.path(f"calibration-{number}")
        run = CalibrationRun(loaded, text, settings, name, out, kept.resume, None, progress)
        fitters[name] = run.cold_fitter(*run.first_pass())
    methods, rows = [], []
    for profile, fitter in fitters.items():
        for ratio in RATIOS:
            tier, _ = fitter.fit(fitter.step_for_ratio(ratio))
            for adaptive in (False, True):
                methods.append(tier_method(tier, loaded, adaptive_tables=adaptive, profile=profile, target_ratio=ratio))
    hashes = {}
    for name, rows_of_ids in scored.items():
        hashes[name] = tokens_sha256(rows_of_ids)
        score = functools.partial(_scores, loaded, rows_of_ids, methods, progress)
        rows += [row.updated(text=name) for row in kept_rows(kept, name, MethodRow, score)]
    return results_file(
        "domains",
        rows,
        provenance(
            **device_facts(loaded.device),
            model=loaded.name,
            weights_sha256=weights_sha256(loaded.model),
            evaluation_sha256=hashes,
            steps=steps,
            part_of_text=part,
            seed=0,
        ),
        table=domain_table(rows),
    )


def _scores(
    loaded: LoadedModel, windows: Tensor, methods: Sequence[Method], progress: Callable[[str, int, int], None]
) -> list[MethodRow]:
    found = measure(loaded.model, loaded.geometry, windows, methods, lambda d, t: progress("scoring", d, t))
    return [m.row(loaded.geometry, loaded.name, windows.shape[1]) for m in found]


def domain_table(rows: list[MethodRow]) -> list[DomainRow]:
    """Payload ratio of every (text, profile, adaptive or not) at one KL that all curves reach, interpolated."""
    curves: dict[tuple[str, str, bool], list[MethodRow]] = {}
    for row in rows:
        options = row.options
        curves.setdefault((row.text, options["profile"], options.get("adaptive_tables", False)), []).append(row)
    low = max(min(r.kl_nats for r in curve) for curve in curves.values())
    high = min(max(r.kl_nats for r in curve) for curve in curves.values())
    kl = (low * high) ** 0.5
    return [
        DomainRow(
            text=text,
            profile=profile,
            adaptive_tables=adaptive,
            kl_nats=kl,
            payload_ratio=ratio_at_kl(curve, kl),
        )
        for (text, profile, adaptive), curve in curves.items()
    ]
