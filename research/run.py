"""Studies by name: what each needs, and how it is begun or gone on with (`sq study`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from research.windows import require_unseen
from spectralquant.errors import InputError
from spectralquant.models.identity import weights_sha256
from spectralquant.models.load import LoadedModel, pick_device
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import Kept, UnfinishedRun
from spectralquant.text.mix import MixedText, tokenize_sources
from spectralquant.text.read import TextSource, open_sources, text_name
from spectralquant.text.tokens import tokens_sha256
from sqcli.loading.for_profile import load_for

Progress = Callable[[str, int, int], None]
Report = Callable[[str], None]
Save = Callable[[Results], None]
TWO_TEXTS = ("domains",)
READ_TOKENS = 4_000_000


@dataclass(frozen=True)
class StudyRequest:
    """What `sq study` was asked for; see its options."""

    name: str
    model: str
    data: tuple[str, ...]
    other_data: tuple[str, ...]
    profile: Path | None
    steps: int
    window: int
    windows: int
    shapes: tuple[str, ...]
    parts: tuple[str, ...]
    keep_sample: Path | None
    train_seconds: float
    device: str
    dtype: str
    offline: bool
    in_mix: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    part_of_text: str = "report"
    bound: float | None = None


@dataclass(frozen=True)
class Desk:
    """Where a study reports, shows how far it is, writes what is finished; and whether it goes on with an interrupted run."""

    progress: Progress
    report: Report
    save: Save
    resume: bool
    out: Path | None = None

    def unfinished(self, request: StudyRequest, **inputs: Any) -> UnfinishedRun:
        """The kept parts of this study."""
        named = {f"request_{k}": str(v) for k, v in asdict(request).items()}
        return UnfinishedRun("study", named | inputs, resume=self.resume, report=self.report)


def run_study(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    """Results, and a line for everything that failed.

    Raises:
        InputError: the study cannot run with these options or on this machine; and whatever models and texts raise.
    """
    alone = {"shapes": _shapes, "architectures": _architectures, "kernels": _kernels, "gate": _gate}
    alone |= {"calibrate-scale": _scale, "quality": _quality, "headline": _headline, "serving": _serving}
    alone |= {"serving-hot": _serving_hot}
    if request.name in alone:
        return alone[request.name](request, desk)
    sources = open_sources(request.data, offline=request.offline, report=desk.report)
    if request.name == "second-model":
        return _second_model(request, sources, desk), []
    return _on_model(request, sources, desk), []


def _on_model(request: StudyRequest, sources: list[TextSource], desk: Desk) -> Results:
    profile = None if request.profile is None else CalibrationProfile.load(request.profile)
    loaded = load_for(profile, request.model, request.device, request.dtype, request.offline, desk.report)
    text, names = _read(loaded.tokenizer, sources, request.window, desk)
    other = None
    if request.name in TWO_TEXTS:
        more = open_sources(request.other_data, offline=request.offline, report=desk.report)
        need = 2 * (request.steps + request.windows) * request.window
        other = tokenize_sources(loaded.tokenizer, more, need, window=request.window, report=desk.report)
        names = (*names, text_name(more))
    inputs = {
        "weights": weights_sha256(loaded.model),
        "texts": [tokens_sha256(t.ids) for t in (text, other) if t is not None],
        "profile_id": None if profile is None else profile.id.hex(),
        "on": str(loaded.device),
    }
    with desk.unfinished(request, **inputs) as kept:
        result = _measure(request, loaded, text, other, names, profile, desk, kept)
    return _with_sources(result, text, other)


def _measure(
    request: StudyRequest,
    loaded: LoadedModel,
    text: MixedText,
    other: MixedText | None,
    names: tuple[str, ...],
    profile: CalibrationProfile | None,
    desk: Desk,
    kept: Kept,
) -> Results:
    progress = desk.progress
    steps, window, windows, part = request.steps, request.window, request.windows, request.part_of_text
    match request.name:
        case "cold":
            from research.cold import ColdStudy, cold_study

            return cold_study(loaded, text, ColdStudy(steps, window, windows, part=part), names[0], progress, kept)
        case "serving-codec":
            from research.serving_codec import ServingStudy, serving_codec_study

            return serving_codec_study(
                loaded, text, ServingStudy(steps, window, windows, part=part), names[0], progress
            )
        case "packet":
            from research.packet import packet_study

            return packet_study(loaded, profile, text, window, progress)
        case "index":
            from research.index import IndexStudy, index_study

            study = IndexStudy(context=4 * window, scored=2 * window, windows=windows, part=part)
            require_unseen(text, profile.sidecar.text.sources, windows, study.context)
            return index_study(loaded, profile, text, names[0], study, progress, kept)
        case "tiers":
            from research.tiers import TierStudy, tier_study

            return tier_study(loaded, text, TierStudy(steps, window, windows, part=part), names[0], progress, kept)
        case "cache":
            from research.cache import cache_study

            return cache_study(loaded, profile, text, 4 * window, 2 * window, progress, kept)
        case "coder":
            from research.coder.model import coder_study_of_model

            return coder_study_of_model(loaded, profile, text, window, names[0], progress, kept)
        case "cold-speed":
            from research.cold_speed.model import cold_speed_study_of_model

            return cold_speed_study_of_model(
                loaded,
                profile,
                text,
                window,
                names[0],
                parts=request.parts,
                earlier=_earlier(desk.out),
                keep_sample=request.keep_sample,
                save=desk.save,
                progress=progress,
            )
        case _:
            from research.domains import domain_study

            both = {names[0]: text, names[1]: other}
            return domain_study(loaded, both, steps, window, windows, progress, kept, part)


def _read(tokenizer: Any, sources: list[TextSource], window: int, desk: Desk) -> tuple[MixedText, tuple[str, ...]]:
    """The text of a study, read as far as `READ_TOKENS`, and its name."""
    text = tokenize_sources(tokenizer, sources, window, window=window, read=READ_TOKENS, report=desk.report)
    return text, (text_name(sources),)


def _earlier(out: Path | None) -> Results | None:
    """What an earlier run left in the results file, for studies that go on from there."""
    from spectralquant.results.files import read_results

    return read_results(out) if out is not None and out.is_file() else None


def _with_sources(result: Results, *texts: MixedText | None) -> Results:
    """Which texts were read, with their weights and hashes."""
    result.provenance["sources"] = [asdict(share) for text in texts if text is not None for share in text.shares()]
    return result


def _quality(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    from research.quality.parts import QualityStudy
    from research.quality.run import QualityTexts, run_quality

    loaded = load_for(None, request.model, request.device, request.dtype, request.offline, desk.report)
    study = QualityStudy(request.steps, request.steps, request.window, request.windows, part=request.part_of_text)
    if request.bound is not None:
        study = replace(study, bound=request.bound)
    texts = QualityTexts(request.data, request.in_mix, request.other_data, request.more)
    named = {"profile": request.profile, "offline": request.offline}
    return run_quality(loaded, study, texts, request.parts, desk.out, desk.report, desk.progress, **named), []


def _headline(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    from research.headline.parts import HeadlineStudy
    from research.headline.study import HeadlineParts, joined

    if desk.out is None:
        raise InputError("The headline study keeps its parts beside its results: name a file with --out.")
    loaded = load_for(None, request.model, request.device, request.dtype, request.offline, desk.report)
    study = HeadlineStudy(request.steps, request.window, request.windows, part=request.part_of_text)
    run = HeadlineParts(desk.out, loaded, study, request.data, request.offline, desk.report, desk.progress)
    run.run(request.parts)
    return joined(desk.out, study), []


def _second_model(request: StudyRequest, sources: list[TextSource], desk: Desk) -> Results:
    from transformers import AutoTokenizer

    from research.second_model import second_model_study
    from spectralquant.models.builtin.folder import builtin_folder
    from spectralquant.models.builtin.table import DEFAULT_MODEL

    folder = builtin_folder(DEFAULT_MODEL, offline=request.offline, report=desk.report)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, (name,) = _read(tokenizer, sources, 1024, desk)
    device = pick_device(request.device)
    with desk.unfinished(request, texts=tokens_sha256(text.ids), on=str(device)) as kept:
        result = second_model_study(tokenizer, text, name, device, request.train_seconds, desk.progress, kept)
    return _with_sources(result, text)


def _kernels(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    from research.kernels import kernel_study
    from spectralquant.provenance import device_facts

    where = pick_device(request.device)
    if where.type != "cuda":
        raise InputError("The kernels study times kernels on a CUDA device, and there is none here.")
    with desk.unfinished(request, **device_facts(where)) as kept:
        return kernel_study("llama-3.1-8b", 32768, (1, 8), where, desk.progress, kept), []


def _gate(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    from spectralquant.gate.simulation import simulate

    with desk.unfinished(request) as kept:
        return simulate(progress=desk.progress, kept=kept), []


def _shapes(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    """Finished models are in the results file before the next is begun."""
    from research.shapes import MODELS, ShapeStudy, failures, shape_study

    study, device = ShapeStudy(request.steps, request.window, data=request.data[0]), pick_device(request.device)
    models = request.shapes or MODELS
    with desk.unfinished(replace(request, shapes=()), on=str(device)) as kept:
        result = shape_study(models, study, device, request.dtype, desk.save, desk.progress, kept)
    return result, list(failures(result))


def _scale(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    """Parts that an earlier run left in the results file are kept, unless they are asked for; those that runs beside it left
    in OUT-part-….json are taken over.
    """
    from research.scale.quality import QualityStudy
    from research.scale.study import PARTS, joined, scale_study
    from spectralquant.errors import did_you_mean
    from spectralquant.models.load import load_model
    from spectralquant.results.files import read_results

    for part in request.parts:
        if part not in PARTS:
            raise InputError(f"There is no part {part!r}; there are {', '.join(PARTS)}.{did_you_mean(part, PARTS)}")

    def load() -> tuple[LoadedModel, MixedText]:
        named = {"device": request.device, "dtype": request.dtype, "offline": request.offline, "report": desk.report}
        loaded = load_model(request.model, **named)
        sources = open_sources(request.data, offline=request.offline, report=desk.report)
        return loaded, _read(loaded.tokenizer, sources, request.window, desk)[0]

    steps = tuple(max(1, int(request.steps * share)) for share in (0.5, 1, 3, 10))
    quality = QualityStudy(steps=steps, usual=request.steps, window=request.window, windows=request.windows)
    earlier = _earlier(desk.out)
    rows = [] if earlier is None else earlier.as_json()["rows"]
    beside = () if desk.out is None else sorted(desk.out.parent.glob(f"{desk.out.stem}-part-*.json"))
    rows = joined(rows, [read_results(file).as_json()["rows"] for file in beside])
    anew = bool(request.parts) and not desk.resume
    return scale_study(
        request.parts or list(PARTS), rows, load, desk.save, desk.progress, request.model, quality, anew
    ), []


def _architectures(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    import transformers

    from research.architectures.study import WRONG, architecture_study

    with desk.unfinished(request, transformers=transformers.__version__) as kept:
        result = architecture_study(progress=desk.progress, kept=kept)
    return result, [f"{row.name}: {row.reason}" for row in result.rows if row.outcome == WRONG]


def _serving_hot(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    from research.serving.hot import HotStudy, serving_hot_study
    from research.serving.hot_speed import serving_hot_speed

    study = HotStudy(text=request.data[0])
    if request.parts == ("large",):
        return serving_hot_speed(study, report=desk.report, out=desk.out), []
    if request.parts not in ((), ("small",)):
        raise InputError("Parts of `serving-hot` are small and large; give one of them, or none for small.")
    offline = request.offline
    return serving_hot_study(request.model, request.profile, study, offline=offline, report=desk.report), []


def _serving(request: StudyRequest, desk: Desk) -> tuple[Results, list[str]]:
    from research.serving.study import serving_study

    named = {"offline": request.offline, "report": desk.report, "out": desk.out}
    result = serving_study(request.model, request.profile, request.parts, **named)
    return result, []
