"""The quality study, resumable: every part is a file in a folder beside the results, and what is there is not done again.

Parts may run in processes side by side; whoever comes last puts all together. A part of another commit, of other options or of
another profile is made anew. What is finished of a part lies in a folder of its own until the part is.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from research.quality.parts import Progress, QualityStudy, foreign, general, home, promised
from research.windows import split_windows
from spectralquant.calibrating.held_errors import StreamedErrors
from spectralquant.calibrating.promise import kind_points, promise_texts
from spectralquant.files import write_text
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.profile.schema import ErrorPoint
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.text.mix import MixedText
from spectralquant.text.tokens import TokenText, tokens_sha256

PARTS = ("home", "general", "texts")
AS_HELD = "-as-held"
"""Ends the name of a home whose sliding layers let tokens go; without it all layers keep all tokens, as a prefix's packet does."""
Text = tuple[str, str, Callable[[], MixedText]]


class QualityParts:
    """Parts of a study in the folder `OUT.parts`."""

    def __init__(self, out: Path, loaded: LoadedModel, study: QualityStudy, progress: Progress) -> None:
        self.folder, self.loaded, self.study, self.progress = out.with_suffix(".parts"), loaded, study, progress
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def _model(self) -> str:
        return "".join(
            c if c.isalnum() or c in ".-" else "-" for c in self.loaded.name.removeprefix("builtin:").strip("/")
        )

    @property
    def profile_stem(self) -> Path:
        """Where the general profile is."""
        return self.folder / "general"

    def home(self, text: TokenText, name: str) -> None:
        """See `parts.home`: of all tokens in all layers, and, of a model with sliding layers, of what these hold."""
        geometry = self.loaded.geometry
        ways = {"": replace(geometry, windows=())} | ({AS_HELD: geometry} if any(geometry.windows) else {})
        for way, coded in ways.items():
            loaded = replace(self.loaded, geometry=coded)
            self._once(
                f"home-{self._model}{way}",
                lambda unfinished, loaded=loaded: home(loaded, text, name, self.study, unfinished, self.progress),
                text=tokens_sha256(text.ids),
            )

    def general(self, mix: TokenText, name: str) -> None:
        """See `parts.general`."""
        stem = self.profile_stem
        self._once(
            "of-the-mix",
            lambda unfinished: general(self.loaded, mix, name, self.study, stem, unfinished, self.progress),
            text=tokens_sha256(mix.ids),
        )

    def promised(self, path: Path, text: TokenText) -> None:
        """See `parts.promised`."""
        profile = CalibrationProfile.load(path)
        profile.require_model(self.loaded.model, self.loaded.name)
        held_out = split_windows(text, self.study.window).development[:1]
        summary, points = profile.sidecar.tiers["cold"], []
        assert summary.step is not None
        held = StreamedErrors(profile.tier("cold"), profile.heads, summary.step, self.loaded)
        for name, windows in promise_texts(self.loaded, held_out, window=self.study.window).items():
            first = points[0].error if points else None
            part = f"kind-{zlib.crc32(name.encode()):08x}"
            self._once(
                part,
                lambda _, n=name, w=windows, e=first: {"points": [p.model_dump() for p in kind_points(held, n, w, e)]},
                profile=profile.id.hex(),
                text=tokens_sha256(windows),
            )
            points += [ErrorPoint(**p) for p in json.loads((self.folder / f"{part}.json").read_text())["points"]]
        self._once(
            "of-the-mix",
            lambda _: promised(self.loaded, profile, points, self.study, self.profile_stem),
            profile=profile.id.hex(),
        )

    def texts(self, texts: list[Text], share: tuple[int, int]) -> None:
        """Score every n-th of some texts (kind, name, reader) under the general profile; share: which, of how many."""
        profile = CalibrationProfile.load(self.profile_stem)
        profile.require_model(self.loaded.model, self.loaded.name)
        for kind, name, read in texts[share[0] :: share[1]]:
            self._once(
                f"text-{zlib.crc32(name.encode()):08x}",
                lambda _, kind=kind, name=name, read=read: foreign(
                    self.loaded, profile, name, read(), kind, self.study, self.progress
                ),
                profile=profile.id.hex(),
                kind=kind,
            )

    def _once(self, part: str, make: Callable[[Path], dict[str, Any]], **inputs: str) -> None:
        """Make a part that is not there, or was made of other inputs, with other options or by another commit."""
        file = self.folder / f"{part}.json"
        facts = provenance(
            **device_facts(self.loaded.device),
            model=self.loaded.name,
            weights_sha256=weights_sha256(self.loaded.model),
            dtype=str(self.loaded.model.dtype),
            study=json.loads(json.dumps(asdict(self.study))),
            inputs=inputs,
        )
        key = {
            name: facts.get(name) for name in ("git_commit", "git_dirty", "weights_sha256", "dtype", "study", "inputs")
        }
        if file.is_file():
            earlier = json.loads(file.read_text(encoding="utf-8"))["provenance"]
            if all(earlier.get(name) == value for name, value in key.items()):
                return
        unfinished = self.folder / f"{part}.{zlib.crc32(json.dumps(key, sort_keys=True).encode()):08x}"
        result = make(unfinished)
        write_text(file, json.dumps({**result, "provenance": facts}, indent=1))
        shutil.rmtree(unfinished, ignore_errors=True)


def joined(out: Path, study: QualityStudy) -> Results:
    """One results file of all parts that are there."""
    parts = {p.stem: json.loads(p.read_text()) for p in sorted(out.with_suffix(".parts").glob("*-*.json"))}
    homes = {name.removeprefix("home-"): part for name, part in parts.items() if name.startswith("home-")}
    texts = sorted((p for n, p in parts.items() if n.startswith("text-")), key=lambda p: (p["kind"], p["text"]))
    rows = [row for part in (*homes.values(), *texts) for row in part.pop("rows")]
    facts = {name: part.pop("provenance") for name, part in parts.items()}
    whole = provenance(parts=facts)
    whole["code"] = {k: v for part in facts.values() for k, v in part["code"].items()} | whole["code"]
    same = ("device", "driver", "cuda", "threads", "model", "weights_sha256", "dtype")
    for name in same:  # what is said of the whole is what all parts say
        values = [part.get(name) for part in facts.values()]
        if values and values[0] is not None and all(value == values[0] for value in values):
            whole[name] = values[0]
    return results_file(
        "quality",
        rows,
        whole,
        summary=summary(homes, texts),
        study=asdict(study),
        homes=homes,
        general=parts.get("of-the-mix"),
        texts=texts,
    )


def summary(homes: dict[str, Any], texts: list[dict[str, Any]]) -> dict[str, float | None]:
    """The figures that the study is for; None where its part is missing."""
    kinds = {kind: [t for t in texts if t["kind"] == kind] for kind in ("in the mix", "outside", "more")}
    scored = kinds["in the mix"] + kinds["outside"]
    least = lambda some: min((t["payload_ratio"] for t in some), default=None)  # noqa: E731
    costs = [h["bound_at_home"]["cost_share"] for h in homes.values()]
    out: dict[str, float | None] = {
        f"ratio_at_kl_{kl}_{name}": homes[model]["ratio_at_kl"][kl] if model in homes else None
        for kl in ("0.01", "0.004")
        for name, model in (
            ("smollm2", "smollm2-135m"),
            ("gemma3", "gemma3-270m"),
            ("gemma3_as_held", f"gemma3-270m{AS_HELD}"),
        )
    }
    out |= {
        "general_in_mix_min_ratio": least(kinds["in the mix"]),
        "general_outside_min_ratio": least(kinds["outside"]),
        "general_max_kl": max((t["kl"] for t in scored), default=None),
        "bound_exceeded_max_share": max((max(0.0, t["exceeded"]) for t in texts), default=None),
        "complement_cost_share_at_home": max(costs, default=None),
        "smaller_than_turboquant_min": min(
            (t["payload_ratio"] / t["turboquant_at_equal_kl"] for t in texts), default=None
        ),
    }
    return out
