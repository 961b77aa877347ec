"""Many methods on the same tokens: rows with rates, quality, retrieval and times; each method's rows can be kept (`Kept`).

A method that fails is reported as failed with its reason, and the rest goes on; a method that changes nothing fails.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from spectralquant.errors import SpectralQuantError
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.tasks.run import run_task
from spectralquant.geometry import BLOCK
from spectralquant.methods.context import MethodContext
from spectralquant.methods.eviction.evictor import PROMPT, STREAMING
from spectralquant.methods.registry import MethodSpec
from spectralquant.models.identity import weights_sha256
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.origin.quotable import marked
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.quality import ComparedRow, TaskScore
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.overlap import block_hashes, overlap
from spectralquant.text.tokens import tokens_sha256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Protocol:
    """What is measured. quotable: large enough for figures that somebody else may cite (method.md section 6); whether a result
    is depends on its code too (`spectralquant.origin.quotable`).
    """

    name: str
    needle_context: int
    needle_trials: int
    quotable: bool
    tasks: tuple[str, ...] = ()
    task_contexts: tuple[int, ...] = ()
    task_trials: int = 0


FULL = Protocol("full", 2048, 20, True)
QUICK = Protocol("quick", 512, 4, False)
PROMPT_SHARE = 0.75
FEW_WINDOWS = 2
MOST_SEEN = 0.01


def prompt_tokens(length: int) -> int:
    """How much of a window is the prompt in the prompt protocol: three quarters, in whole blocks."""
    return int(length * PROMPT_SHARE) // BLOCK * BLOCK


def modes_of(groups: Sequence[Sequence[MethodSpec]]) -> tuple[str, ...]:
    """The protocols of a comparison: those that methods ask for; streaming, where a codec is compared or nothing asks."""
    specs = [spec for group in groups for spec in group if spec.name not in ("none", "spectral")]
    asked = {spec.mode for spec in specs}
    streaming = STREAMING in asked or None in asked or not asked
    return (*((STREAMING,) if streaming else ()), *((PROMPT,) if PROMPT in asked else ()))


class Comparison:
    """One comparison over one or several sets of windows `{context: [n, context]}`."""

    def __init__(
        self,
        context: MethodContext,
        windows: dict[int, Tensor],
        protocol: Protocol,
        text_name: str,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.context, self.windows, self.protocol, self.text_name = context, windows, protocol, text_name
        self.progress = progress
        loaded = context.loaded
        for length, ids in windows.items():
            require_known_ids(loaded.model, ids)
            require_positions(loaded.model, length, "A window", "Use a shorter --context.")
        if protocol.needle_trials:
            way_out = "Use a model with more positions, or --quick."
            require_positions(loaded.model, protocol.needle_context, "The needle task", way_out)
        self.identity = {
            "model": loaded.name,
            "weights_sha256": weights_sha256(loaded.model),
            "dtype": str(loaded.model.dtype),
            "evaluation_sha256": {str(n): tokens_sha256(w) for n, w in windows.items()},
            "profile": None if context.profile is None else context.profile.id.hex(),
            "protocol": asdict(protocol),
            "seed": context.seed,
        }

    def run(self, groups: Sequence[Sequence[MethodSpec]], kept: Kept = NOTHING_KEPT) -> Results:
        """Measure every group (one method's budgets run as one batch); returns a results file."""
        rows: list[ComparedRow] = []
        parts = [(mode, group) for mode in modes_of(groups) for each in groups if (group := _of_mode(each, mode))]
        for index, (mode, group) in enumerate(parts):
            self.progress(group[0].name, index, len(parts))
            name = json.dumps([mode, *(spec.label for spec in group)])
            rows += kept_rows(kept, name, ComparedRow, functools.partial(self._measure, group, mode))
        facts = device_facts(self.context.loaded.device) | self.identity | kept.facts()
        shared = self._overlap()
        source = marked(provenance(**facts, text=self.text_name, overlap=shared), *self._doubts(shared))
        return results_file(
            "compare",
            rows,
            source,
            protocol=asdict(self.protocol) | {"quotable": source["quotable"]},
            failed=[row for row in rows if row.failed],
        )

    def _overlap(self) -> dict[str, float]:
        """Share of the scored text that the profile, and the rivals, were calibrated on; profiles of before keep no hashes."""
        side, own = self.context.profile, self.context.windows
        texts = {
            "profile": "" if side is None else side.sidecar.text.blocks,
            "rivals": "" if own is None else block_hashes(own),
        }
        return {
            name: max(overlap(blocks, windows) for windows in self.windows.values())
            for name, blocks in texts.items()
            if blocks
        }

    def _doubts(self, shared: Mapping[str, float]) -> Iterator[str]:
        """Why the figures should not be quoted: too little text (an interval over windows needs two), or text that was seen."""
        if not self.protocol.quotable:
            yield "--quick is too small to quote"
        few = [str(n) for n, windows in self.windows.items() if len(windows) < FEW_WINDOWS]
        if few:
            yield f"one window of {', '.join(few)} tokens is too little to quote"
        for name, share in shared.items():
            if share > MOST_SEEN:
                yield f"{100 * share:.0f} % of the scored text stands in the calibration text of the {name}"

    def _measure(self, group: Sequence[MethodSpec], mode: str) -> list[ComparedRow]:
        """Rows of one method: all budgets at once, or one by one where together they fail."""
        try:
            return self._rows(group, mode)
        except (SpectralQuantError, RuntimeError, ImportError, ValueError, NotImplementedError) as error:
            if len(group) > 1:
                return [row for spec in group for row in self._measure([spec], mode)]
            reason = " ".join(str(error).split()) or type(error).__name__
            return [ComparedRow(method=group[0].name, options=dict(group[0].options), mode=mode, failed=reason[:400])]

    def _rows(self, group: Sequence[MethodSpec], mode: str) -> list[ComparedRow]:
        loaded = self.context.loaded
        methods = [spec.build(self.context) for spec in group]
        rows: list[ComparedRow] = []
        for length, windows in self.windows.items():
            stage = f"{group[0].name}, {length} tokens, {mode}"
            measured = measure(
                loaded.model,
                loaded.geometry,
                windows,
                methods,
                lambda d, t, stage=stage: self.progress(stage, d, t),
                prompt=prompt_tokens(length) if mode == PROMPT else 0,
            )
            for spec, one in zip(group, measured, strict=True):
                row = one.row(loaded.geometry, loaded.name, length)
                rows.append(ComparedRow(**dict(row), label=spec.label))
        protocol = self.protocol
        wanted = [(name, n, protocol.task_trials) for name in protocol.tasks for n in protocol.task_contexts]
        if protocol.needle_trials:
            wanted.insert(0, ("needle", protocol.needle_context, protocol.needle_trials))
        scores: list[dict[str, TaskScore]] = [{} for _ in group]
        for name, context, trials in dict.fromkeys(wanted):
            stage = f"{group[0].name}, {name} {context}, {mode}"
            show = lambda d, t, stage=stage: self.progress(stage, d, t)  # noqa: E731
            options = {"trials": trials, "mode": mode, "seed": self.context.seed, "progress": show}
            for of_method, score in zip(scores, run_task(loaded, methods, name, context, **options), strict=True):
                of_method[f"{name}@{context}"] = score
        for row, of_method in zip(rows, scores * len(self.windows), strict=True):
            _add_scores(row, of_method, f"needle@{protocol.needle_context}" if protocol.needle_trials else None)
        return rows


def _of_mode(group: Sequence[MethodSpec], mode: str) -> list[MethodSpec]:
    """Those of a method's budgets that can be measured in a protocol."""
    return [spec for spec in group if spec.mode in (None, mode)]


def _add_scores(row: ComparedRow, scores: dict[str, TaskScore], needle: str | None) -> None:
    if scores:
        row.tasks = scores
    if needle is not None:
        score = scores[needle]
        row.needle, row.needle_uncompressed = score.score, score.uncompressed
        row.needle_trials, row.needle_context = score.trials, score.context
