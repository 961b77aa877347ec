"""`gate`: two results files to verdicts and an exit code; suites by name; baselines written on purpose."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spectralquant.errors import InputError, did_you_mean
from spectralquant.files import write_json
from spectralquant.gate.fingerprint import mismatches
from spectralquant.gate.limits import Limits
from spectralquant.gate.metrics import metrics_of
from spectralquant.gate.suites import SUITES
from spectralquant.gate.verdict import INCONCLUSIVE, NEW, Verdict, decide, exit_code, verdict_rows
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.speed import Telemetry
from spectralquant.results.unfinished import UnfinishedRun

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """mismatch: why the two results cannot be compared at all."""

    verdicts: list[Verdict]
    mismatch: list[str]

    @property
    def code(self) -> int:
        """0 fine, 1 regression, 3 inconclusive."""
        return exit_code(self.verdicts, self.mismatch)

    def counts(self) -> dict[str, int]:
        """How many of each verdict."""
        kinds = [v.verdict for v in self.verdicts]
        return {kind: kinds.count(kind) for kind in ("regression", "inconclusive", "pass", "skipped", NEW)}

    def result(self) -> Results:
        """As a results file."""
        facts = {"mismatch": self.mismatch, "exit_code": self.code, "counts": self.counts()}
        return results_file("verdicts", verdict_rows(self.verdicts), provenance(), **facts)


def judge(baseline: Results, current: Results, limits: Limits, *, interleaved: bool = False) -> Outcome:
    """Verdicts of all metrics; with a mismatch of fingerprints every one is inconclusive.

    Raises:
        InputError: a file holds nothing that can be gated, or a limit that matches nothing.
    """
    before = metrics_of(baseline, "The baseline")
    limits.require_matches(before)
    now = metrics_of(current, "The current results") if current.get("measured", True) else {}
    different = [] if interleaved else mismatches(baseline, current)
    if different:
        why = "; ".join(different)
        return Outcome([Verdict(name, INCONCLUSIVE, why, m.value) for name, m in before.items()], different)
    return Outcome(decide(before, now, limits, interleaved=interleaved, doubt=_doubt(baseline, current)), [])


def _doubt(*results: Results) -> str | None:
    """Why timed figures cannot be trusted."""
    for result in results:
        telemetry: Telemetry | None = result.get("telemetry")
        if telemetry is not None and not telemetry.verdict.conclusive:
            return telemetry.verdict.why
    return None


def run_suite(
    name: str,
    model: str,
    data: Sequence[str],
    device: str,
    offline: bool,
    progress: Progress,
    report: Callable[[str], None] = lambda _: None,
    baseline: Results | None = None,
    *,
    resume: bool = False,
) -> Results:
    """Measure a suite on texts as `open_sources` takes them; `report` is told what reading them left out.

    With a baseline that cannot be compared with this model, text, device or suite nothing is measured: the results have no
    rows then, and `judge` says why. Finished parts are kept in the user's cache until the run ends; with `resume` they are
    taken from there.

    Raises:
        InputError: there is no such suite, or it cannot run here.
    """
    if name not in SUITES:
        raise InputError(f"There is no suite {name!r}; there are {', '.join(SUITES)}.{did_you_mean(name, SUITES)}")
    if name == "gpu":
        from spectralquant.gate.suites.gpu import gpu_suite, gpu_suite_header
        from spectralquant.models.load import pick_device

        where = pick_device(device)
        header = gpu_suite_header(where)
        if baseline is not None and mismatches(baseline, header):
            return header.updated(measured=False)
        with UnfinishedRun("gate", {"suite": name} | device_facts(where), resume=resume, report=report) as kept:
            return gpu_suite(where, progress, kept)
    from spectralquant.gate.suites.smoke import TOKENS, SmokeSettings, smoke_suite, smoke_suite_header
    from spectralquant.models.identity import weights_sha256
    from spectralquant.models.load import load_model
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import open_sources, text_name
    from spectralquant.text.tokens import tokens_sha256

    sources = open_sources(data, offline=offline, report=report)
    loaded = load_model(model, device="cpu", dtype="float32", offline=offline)
    text = tokenize_sources(loaded.tokenizer, sources, TOKENS, window=SmokeSettings().window, report=report)
    header = smoke_suite_header(loaded, text, text_name(sources))
    if baseline is not None and mismatches(baseline, header):
        return header.updated(measured=False)
    inputs = {"suite": name, "weights": weights_sha256(loaded.model), "text": tokens_sha256(text.ids)}
    with UnfinishedRun("gate", inputs, resume=resume, report=report) as kept:
        result = smoke_suite(loaded, text, text_name(sources), None, progress, kept)
    result.provenance["sources"] = [asdict(share) for share in text.shares()]
    return result


def write_baseline(path: Path, result: Results, *, force: bool) -> None:
    """Write a results file as the new baseline.

    Raises:
        InputError: something in it could not be measured, or the working tree has changes (they would not be in the commit
            that the baseline names) and not `force`.
    """
    broken = next((m for m in metrics_of(result).values() if m.error is not None), None)
    if broken is not None:
        raise InputError(
            f"{broken.name} could not be measured ({broken.error}); a baseline of that would never notice. Mend it first."
        )
    if not force and (changed := _changes(path)):
        raise InputError(
            f"The working tree has uncommitted changes ({changed}), so this baseline could not be made again. Commit "
            "first, or use --force."
        )
    write_json(path, result.as_json())


def _changes(path: Path) -> str | None:
    """Uncommitted changes beside the baseline itself, or None (also outside a repository)."""
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    run = lambda *a: subprocess.run(["git", "-C", str(folder), *a], capture_output=True, text=True, check=False)  # noqa: E731
    top = run("rev-parse", "--show-toplevel")
    if top.returncode:
        return None
    lines = run("status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    others = [
        line[3:] for line in lines if (Path(top.stdout.strip()) / line[3:].strip('"')).resolve() != path.resolve()
    ]
    return f"{len(others)} files, {others[0]} among them" if others else None
