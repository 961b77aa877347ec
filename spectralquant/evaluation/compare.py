"""Many methods on the same tokens: rows with rates, quality, retrieval and times; each method's rows can be kept (`Kept`).

A method that fails is reported as failed with its reason, and the rest goes on; a method that changes nothing fails.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from spectralquant.errors import SpectralQuantError
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.needle import needle_retrieval
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import MethodSpec
from spectralquant.models.identity import weights_sha256
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.origin.quotable import marked
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.kept import kept_rows
from spectralquant.results.quality import ComparedRow
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
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


FULL = Protocol("full", 2048, 20, True)
QUICK = Protocol("quick", 512, 4, False)


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
        for index, group in enumerate(groups):
            self.progress(group[0].name, index, len(groups))
            name = json.dumps([spec.label for spec in group])
            rows += kept_rows(kept, name, ComparedRow, functools.partial(self._measure, group))
        facts = device_facts(self.context.loaded.device) | self.identity | kept.facts()
        small = () if self.protocol.quotable else ("--quick is too small to quote",)
        source = marked(provenance(**facts, text=self.text_name), *small)
        return results_file(
            "compare",
            rows,
            source,
            protocol=asdict(self.protocol) | {"quotable": source["quotable"]},
            failed=[row for row in rows if row.failed],
        )

    def _measure(self, group: Sequence[MethodSpec]) -> list[ComparedRow]:
        """Rows of one method: all budgets at once, or one by one where together they fail."""
        try:
            return self._rows(group)
        except (SpectralQuantError, RuntimeError, ImportError, ValueError, NotImplementedError) as error:
            if len(group) > 1:
                return [row for spec in group for row in self._measure([spec])]
            reason = " ".join(str(error).split()) or type(error).__name__
            return [ComparedRow(method=group[0].name, options=dict(group[0].options), failed=reason[:400])]

    def _rows(self, group: Sequence[MethodSpec]) -> list[ComparedRow]:
        loaded = self.context.loaded
        methods = [spec.build(self.context) for spec in group]
        rows: list[ComparedRow] = []
        for length, windows in self.windows.items():
            found = measure(
                loaded.model,
                loaded.geometry,
                windows,
                methods,
                lambda d, t, n=length: self.progress(f"{group[0].name}, {n} tokens", d, t),
            )
            for spec, one in zip(group, found, strict=True):
                row = one.row(loaded.geometry, loaded.name, length)
                rows.append(ComparedRow(**dict(row), label=spec.label))
        if self.protocol.needle_trials:
            found = needle_retrieval(
                loaded,
                methods,
                self.protocol.needle_context,
                trials=self.protocol.needle_trials,
                seed=self.context.seed,
                progress=lambda d, t: self.progress(f"{group[0].name}, needle", d, t),
            )
            needles = {spec.label: result.row() for spec, result in zip(group, found, strict=True)}
            for row in rows:
                needle = needles[row.label or ""]
                row.needle, row.needle_uncompressed = needle.needle, needle.needle_uncompressed
                row.needle_trials, row.needle_context = needle.needle_trials, self.protocol.needle_context
        return rows
