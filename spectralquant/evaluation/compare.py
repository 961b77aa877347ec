"""Many methods on the same tokens: rows with rates, quality, retrieval and times; each method's rows can be kept (`Kept`).

A method that fails is reported as failed with its reason, and the rest goes on; a method that changes nothing fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from spectralquant.errors import SpectralQuantError
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.needle import needle_retrieval
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import MethodSpec
from spectralquant.models.identity import weights_sha256
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.text.tokens import tokens_sha256
from spectralquant.unfinished import NOTHING_KEPT, Kept

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Protocol:
    """What is measured. quotable: large enough for figures that somebody else may cite (method.md section 6)."""

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

    def run(self, groups: Sequence[Sequence[MethodSpec]], kept: Kept = NOTHING_KEPT) -> dict[str, Any]:
        """Measure every group (one method's budgets run as one batch); returns a results file."""
        rows: list[dict[str, Any]] = []
        for index, group in enumerate(groups):
            self.progress(group[0].name, index, len(groups))
            rows += kept.value(json.dumps([spec.label for spec in group]), lambda group=group: self._measure(group))
        facts = device_facts(self.context.loaded.device) | self.identity | kept.facts()
        return results_file(
            "compare",
            rows,
            provenance(**facts, text=self.text_name),
            protocol=asdict(self.protocol),
            failed=[row for row in rows if "failed" in row],
        )

    def _measure(self, group: Sequence[MethodSpec]) -> list[dict[str, Any]]:
        """Rows of one method: all budgets at once, or one by one where together they fail."""
        try:
            return self._rows(group)
        except (SpectralQuantError, RuntimeError, ImportError, ValueError, NotImplementedError) as error:
            if len(group) > 1:
                return [row for spec in group for row in self._measure([spec])]
            reason = " ".join(str(error).split()) or type(error).__name__
            return [{"method": group[0].name, "options": dict(group[0].options), "failed": reason[:400]}]

    def _rows(self, group: Sequence[MethodSpec]) -> list[dict[str, Any]]:
        loaded = self.context.loaded
        methods = [spec.build(self.context) for spec in group]
        rows: list[dict[str, Any]] = []
        for length, windows in self.windows.items():
            found = measure(
                loaded.model,
                loaded.geometry,
                windows,
                methods,
                lambda d, t, n=length: self.progress(f"{group[0].name}, {n} tokens", d, t),
            )
            for spec, one in zip(group, found, strict=True):
                rows.append({**one.row(loaded.geometry, loaded.name, length), "label": spec.label})
        if self.protocol.needle_trials:
            found = needle_retrieval(
                loaded,
                methods,
                self.protocol.needle_context,
                trials=self.protocol.needle_trials,
                seed=self.context.seed,
                progress=lambda d, t: self.progress(f"{group[0].name}, needle", d, t),
            )
            needles = [n.row() for n in found]
            for row in rows:
                index = [spec.label for spec in group].index(row["label"])
                for key in ("needle", "needle_uncompressed", "needle_trials"):
                    row[key] = needles[index][key]
                row["needle_context"] = self.protocol.needle_context
        return rows
