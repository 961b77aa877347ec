"""The quality study by request: its texts opened, its parts run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from research.quality.parts import Progress, QualityStudy
from research.quality.study import PARTS, QualityParts, joined
from spectralquant.errors import InputError
from spectralquant.models.load import LoadedModel
from spectralquant.results.schema import Results
from spectralquant.text.mix import MixedText, tokenize_sources
from spectralquant.text.read import open_sources, text_name

READ_TOKENS = 4_000_000


@dataclass(frozen=True)
class QualityTexts:
    """Texts as `--data` names them: of the mix (the first is the home text), of its kinds, of other kinds, and more."""

    mix: tuple[str, ...]
    in_mix: tuple[str, ...]
    outside: tuple[str, ...]
    more: tuple[str, ...]


def run_quality(
    loaded: LoadedModel,
    study: QualityStudy,
    texts: QualityTexts,
    parts: tuple[str, ...],
    out: Path | None,
    report: Callable[[str], None],
    progress: Progress,
    profile: Path | None = None,
) -> Results:
    """Run parts (none named: all); what is there so far, in one file. profile: in the place of a general one made here.

    Raises:
        InputError: no file to write, or an unknown part.
    """
    if out is None:
        raise InputError("The quality study keeps its parts beside its results: name a file with --out.")

    def text(some: list[str], read: int) -> MixedText:
        sources = open_sources(some, report=report)
        return tokenize_sources(loaded.tokenizer, sources, study.window, window=study.window, read=read, report=report)

    def reader(spec: str) -> Callable[[], MixedText]:
        return lambda: text([spec], study.text_tokens)

    run = QualityParts(out, loaded, study, progress)
    for part in parts or PARTS:
        name, _, share = part.partition(":")
        if name == "home":
            run.home(text([texts.mix[0]], READ_TOKENS), texts.mix[0])
        elif name == "general" and profile is not None:
            run.promised(profile, text([texts.mix[0]], READ_TOKENS))
        elif name == "general":
            need = study.general_steps * study.window + 2 * study.held_out * 1024
            sources = open_sources(texts.mix, report=report)
            mix = tokenize_sources(loaded.tokenizer, sources, need, window=study.window, report=report)
            run.general(mix, text_name(sources))
        elif name == "texts":
            which, _, total = share.partition("/")
            kinds = (("in the mix", texts.in_mix), ("outside", texts.outside), ("more", texts.more))
            named = [(kind, spec, reader(spec)) for kind, some in kinds for spec in some]
            run.texts(named, (int(which or 0), int(total or 1)))
        else:
            raise InputError(f"--part {part!r} is not one of {', '.join(PARTS)}, texts:2/6.")
    return joined(out, study)
