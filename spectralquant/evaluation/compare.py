"""Many methods on the same tokens: rows with rates, quality, retrieval and times; resumable method by method.

A method that fails is reported as failed with its reason, and the rest goes on; a method that changes nothing fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spectralquant.errors import InputError, SpectralQuantError
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.needle import needle_retrieval
from spectralquant.files import read_json, write_json
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import MethodSpec
from spectralquant.models.identity import weights_sha256
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.text.tokens import tokens_sha256

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
        partial: Path | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.context, self.windows, self.protocol, self.text_name = context, windows, protocol, text_name
        self.partial, self.progress = partial, progress
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

    def run(self, groups: Sequence[Sequence[MethodSpec]], *, resume: bool = False) -> dict[str, Any]:
        """Measure every group (one method's budgets run as one batch); returns a results file."""
        done = self._load() if resume else {}
        for index, group in enumerate(groups):
            key = _key(group)
            if key not in done:
                self.progress(group[0].name, index, len(groups))
                done[key] = self._measure(group)
                self._save(done)
        rows = [row for group in groups for row in done[_key(group)]]
        result = results_file(
            "compare",
            rows,
            provenance(**device_facts(self.context.loaded.device), text=self.text_name, **self.identity),
            protocol=asdict(self.protocol),
            failed=[row for row in rows if "failed" in row],
        )
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)
        return result

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

    def _load(self) -> dict[str, list[dict[str, Any]]]:
        if self.partial is None or not self.partial.is_file():
            return {}
        held = read_json(self.partial, "The unfinished comparison")
        try:
            found, done = held["identity"], dict(held["done"])
            differing = [k for k, v in self._identity_json().items() if found.get(k) != v]
            whole = all(isinstance(r, dict) and "method" in r for rows in done.values() for r in rows)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.partial} is damaged ({error}). Delete it, or run without --resume.") from error
        if differing or not whole:
            raise InputError(
                f"{self.partial} belongs to another comparison ({', '.join(differing) or 'its rows'} differ). Use the same "
                "options, or run without --resume."
            )
        return done

    def _save(self, done: dict[str, list[dict[str, Any]]]) -> None:
        if self.partial is not None:
            write_json(self.partial, {"identity": self._identity_json(), "done": done})

    def _identity_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.identity))


def _key(group: Sequence[MethodSpec]) -> str:
    return hashlib.sha256(json.dumps([spec.label for spec in group]).encode()).hexdigest()[:16]
