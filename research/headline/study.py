"""The headline study, resumable: every part is a file in a folder beside the results, and what is there is not done again.

Parts (`fit`, `score`, `speed`; `fit:bible` is one text's) may run in processes side by side, a process a model; whoever comes last
puts all together. A part of another commit is made anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.headline.parts import GENERAL, OWN, HeadlineStudy, Progress, fit, profile_path, score, spectral_method
from research.headline.speed import speed_rows
from research.headline.texts import KINDS, text_file
from spectralquant.errors import InputError, did_you_mean
from spectralquant.files import write_text
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import parse
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.text.mix import MixedText, tokenize_sources
from spectralquant.text.read import open_sources
from spectralquant.text.recipes import MIX

STAGES = ("fit", "score", "speed")
FOREIGN = {"wikitext": "python"}
READ_TOKENS = 1_000_000


def foreign_of(name: str) -> str:
    """Which text's profile is the foreign one of a text."""
    return FOREIGN.get(name, "wikitext")


def sources(name: str) -> dict[str, str]:
    """The kinds of profile that a text is scored with, and which text's each is."""
    return {OWN: name, GENERAL: GENERAL, f"foreign {foreign_of(name)}": foreign_of(name)}


@dataclass
class HeadlineParts:
    """The parts of one model. wikitext: `--data` of WikiText, which comes in no package."""

    out: Path
    loaded: LoadedModel
    study: HeadlineStudy
    wikitext: tuple[str, ...]
    offline: bool
    report: Callable[[str], None]
    progress: Progress

    def __post_init__(self) -> None:
        self.folder = self.out.with_suffix(".parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.further: dict[tuple[str, float], tuple[dict[str, Any], CalibrationProfile]] = {}
        name = self.loaded.name.removeprefix("builtin:").strip("/")
        self.model = "".join(c if c.isalnum() or c in "-." else "-" for c in name)

    def run(self, parts: tuple[str, ...]) -> None:
        """Make what is asked for (nothing named: everything) and is not there.

        Raises:
            InputError: an unknown part, or one that needs what another part has not made: profiles, budgets to time.
        """
        for part in parts or STAGES:
            stage, _, name = part.partition(":")
            known = (*KINDS, *((GENERAL,) if stage == "fit" else ()))
            if stage not in STAGES:
                raise InputError(f"--part {part!r} is not one of {', '.join(STAGES)}.{did_you_mean(stage, STAGES)}")
            if name and name not in known:
                raise InputError(f"--part {part!r}: texts are {', '.join(known)}.{did_you_mean(name, known)}")
            if stage == "speed":
                self._once("speed", self._speed)
                continue
            for each in (name,) if name else known:
                self._once(f"{stage}-{each}", lambda stage=stage, each=each: getattr(self, f"_{stage}")(each))

    def text(self, name: str) -> MixedText:
        """A text by name; `general` is the mix."""
        if name == GENERAL:
            specs: tuple[str, ...] = (MIX,)
            read = (self.study.steps + 8) * self.study.window
        else:
            specs = self.wikitext if name == "wikitext" else (f"file:{text_file(name, offline=self.offline)}",)
            read = READ_TOKENS
        sources = open_sources(specs, offline=self.offline, report=self.report)
        window = self.study.window
        return tokenize_sources(
            self.loaded.tokenizer, sources, 4 * window, window=window, read=read, report=self.report
        )

    def _stem(self, name: str, ratio: float) -> Path:
        return profile_path(self.folder, self.model, name, ratio)

    def _ratios(self, name: str) -> list[float]:
        """Payload ratios that the profile of a text is fitted for: all that some text is scored with."""
        kinds = [(kind, source) for text in KINDS for kind, source in sources(text).items()]
        return sorted({ratio for kind, source in kinds if source == name for ratio in self.study.ratios_of(kind)})

    def _fit(self, name: str) -> dict[str, Any]:
        def keep(ratio: float, profile: CalibrationProfile) -> None:
            profile.save(self._stem(name, ratio))

        return fit(self.loaded, self.text(name), name, self._ratios(name), keep, self.study, self.progress)

    def _score(self, name: str) -> dict[str, Any]:
        of = sources(name)
        for kind, source in of.items():
            for stem in (self._stem(source, ratio) for ratio in self.study.ratios_of(kind)):
                if not stem.with_name(stem.name + ".json").is_file():
                    raise InputError(f"--part score:{name} needs {stem}, which --part fit makes.")
        further: dict[tuple[str, float], dict[str, Any]] = {}

        def profile_at(kind: str, ratio: float) -> CalibrationProfile:
            source = of[kind]
            if ratio in self._ratios(source):
                return CalibrationProfile.load(self._stem(source, ratio))
            further[source, ratio], profile = self._further(source, ratio)
            return profile

        result = score(self.loaded, self.text(name), name, tuple(of), profile_at, self.study, self.progress)
        return {**result, "further": list(further.values())}

    def _further(self, name: str, ratio: float) -> tuple[dict[str, Any], CalibrationProfile]:
        """A profile of a text at a ratio that `fit` did not foresee; it stays in memory for other texts."""
        if (name, ratio) not in self.further:
            profiles: dict[float, CalibrationProfile] = {}
            facts = fit(self.loaded, self.text(name), name, [ratio], profiles.__setitem__, self.study, self.progress)
            facts.pop("code")
            self.further[name, ratio] = facts, profiles[ratio]
        return self.further[name, ratio]

    def _speed(self) -> dict[str, Any]:
        """Every method at the budget that is nearest to the KL on WikiText."""
        scored = self._file("score-wikitext")
        if not scored.is_file():
            raise InputError(f"--part speed needs {scored}, which --part score:wikitext makes.")
        text = self.text("wikitext")
        windows = text.windows(self.study.window)
        context = MethodContext(self.loaded, None, windows[: self.study.steps_of(text)], 0)
        rivals = {rival.method: rival for rival in self.study.rivals}
        nearest = json.loads(scored.read_text())["at_kl"]
        methods = [parse(rivals[name].label(b))[0].build(context) for name, b in nearest.values() if name in rivals]
        ratio = min(self.study.ratios, key=lambda ratio: abs(math.log(ratio / nearest[OWN][1])))
        profile = CalibrationProfile.load(self._stem("wikitext", ratio))
        methods.insert(0, spectral_method(self.loaded, profile, OWN, ratio)[0])
        rows = speed_rows(self.loaded, self.study.scored(text)[-1], methods)
        return {"speed": [row.as_json() for row in rows]}

    def _file(self, part: str) -> Path:
        return self.folder / f"{self.model}.{part}.json"

    def _once(self, part: str, make: Callable[[], dict[str, Any]]) -> None:
        file = self._file(part)
        facts = provenance(
            **device_facts(self.loaded.device),
            model=self.loaded.name,
            weights_sha256=weights_sha256(self.loaded.model),
            dtype=str(self.loaded.model.dtype),
            study=json.loads(json.dumps(asdict(self.study))),
        )
        same = ("git_commit", "git_dirty", "weights_sha256", "study")
        if file.is_file():
            earlier = json.loads(file.read_text())["provenance"]
            if all(earlier.get(name) == facts.get(name) for name in same):
                return
        result = make()
        code = result.pop("code", None)
        write_text(file, json.dumps({**result, "provenance": facts | ({} if code is None else {"code": code})}))


def joined(out: Path, study: HeadlineStudy) -> Results:
    """One results file of all parts of all models that are there."""
    parts = {
        p.name.removesuffix(".json"): json.loads(p.read_text())
        for p in sorted(out.with_suffix(".parts").glob("*.*-*.json"))
    }
    parts = {name: part for name, part in parts.items() if "provenance" in part}
    parts |= {p.stem: json.loads(p.read_text()) for p in sorted(out.with_suffix(".parts").glob("*.speed.json"))}
    facts = {name: part.pop("provenance") for name, part in parts.items()}
    whole = provenance(parts=facts)
    if facts:
        first = next(iter(facts.values()))
        whole |= {name: first[name] for name in ("device", "driver", "cuda", "threads") if name in first}
    whole["code"] = {k: v for part in facts.values() for k, v in part["code"].items()} | whole["code"]
    return results_file(
        "headline",
        [row for part in parts.values() for row in part.get("rows", ())],
        whole,
        points=[row for part in parts.values() for row in part.get("points", ())],
        speed=[row for part in parts.values() for row in part.get("speed", ())],
        profiles=[
            {"part": name, **fitted}
            for name, part in parts.items()
            for fitted in ([part] if "profile_bytes" in part else part.get("further", ()))
        ],
        study=asdict(study),
    )
