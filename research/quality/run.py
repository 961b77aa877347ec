"""The quality study by request: its texts opened, its parts run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from research.quality.parts import HELD_OUT_WINDOW, Progress, QualityStudy
from research.quality.study import PARTS, QualityParts, Text, joined
from research.quality.texts import IN_MIX, MIX, MORE, OUTSIDE, TEXTS, names, text_file
from spectralquant.errors import InputError
from spectralquant.models.load import LoadedModel
from spectralquant.results.schema import Results
from spectralquant.text.mix import MixedText, tokenize_sources
from spectralquant.text.read import TextSource, open_sources, text_name

READ_TOKENS = 4_000_000
CODE = "builtin:code"


@dataclass(frozen=True)
class QualityTexts:
    """Texts as `--data` names them: of the mix (the first is the home text), of its kinds, of other kinds, and more.

    Of kinds none named: those of `research.quality.texts`, whose mix joins a home text that is alone.
    """

    mix: tuple[str, ...]
    in_mix: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        """Whether the study's own texts are scored."""
        return not (self.in_mix or self.outside or self.more)


@dataclass(frozen=True)
class _Reader:
    """Opens texts for a model."""

    loaded: LoadedModel
    study: QualityStudy
    offline: bool
    report: Callable[[str], None]

    def text(self, some: Sequence[str], read: int) -> MixedText:
        """Texts by `--data` names."""
        return self.tokens(open_sources(list(some), offline=self.offline, report=self.report), read)

    def tokens(self, sources: list[TextSource], read: int | None) -> MixedText:
        """Opened texts; read: None for as many tokens as the general profile takes."""
        window, study = self.study.window, self.study
        need = study.general_steps * window + 2 * study.held_out * HELD_OUT_WINDOW if read is None else window
        return tokenize_sources(self.loaded.tokenizer, sources, need, window=window, read=read, report=self.report)

    def mix(self, texts: QualityTexts) -> tuple[MixedText, str]:
        """What calibrates the general profile, and its name."""
        alone = texts.own and len(texts.mix) == 1
        named = (*texts.mix, CODE) if alone else texts.mix
        sources = open_sources(named, offline=self.offline, report=self.report)
        for name in names(MIX) if alone else ():
            (source,) = open_sources(self._file(name), report=self.report)
            sources.append(replace(source, name=name))
        return self.tokens(sources, None), text_name(sources)

    def scored(self, texts: QualityTexts) -> list[Text]:
        """Kind, name and reader of every text that is scored under the general profile."""
        some, all_of_it = self.study.text_tokens, READ_TOKENS
        if not texts.own:
            kinds = ((IN_MIX, texts.in_mix), (OUTSIDE, texts.outside), (MORE, texts.more))
            return [(k, spec, partial(self.text, [spec], some)) for k, specs in kinds for spec in specs]
        out: list[Text] = [(IN_MIX, texts.mix[0], partial(self.text, texts.mix[:1], all_of_it))]
        return out + [(t.kind, t.name, partial(self._named, t.name)) for t in TEXTS if t.kind != MIX]

    def _named(self, name: str) -> MixedText:
        return self.text([self._file(name)], self.study.text_tokens)

    def _file(self, name: str) -> str:
        return f"file:{text_file(name, offline=self.offline)}"


def run_quality(
    loaded: LoadedModel,
    study: QualityStudy,
    texts: QualityTexts,
    parts: tuple[str, ...],
    out: Path | None,
    report: Callable[[str], None],
    progress: Progress,
    profile: Path | None = None,
    offline: bool = False,
) -> Results:
    """Run parts (none named: all); what is there so far, in one file. profile: in the place of a general one made here.

    Raises:
        InputError: no file to write, or an unknown part. SourceError: a text cannot be read or fetched.
    """
    if out is None:
        raise InputError("The quality study keeps its parts beside its results: name a file with --out.")
    reader = _Reader(loaded, study, offline, report)
    run = QualityParts(out, loaded, study, progress)
    for part in parts or PARTS:
        name, _, share = part.partition(":")
        if name == "home":
            run.home(reader.text(texts.mix[:1], READ_TOKENS), texts.mix[0])
        elif name == "general" and profile is not None:
            run.promised(profile, reader.text(texts.mix[:1], READ_TOKENS))
        elif name == "general":
            run.general(*reader.mix(texts))
        elif name == "texts":
            run.texts(reader.scored(texts), _share(share))
        else:
            raise InputError(f"--part {part!r} is not one of {', '.join(PARTS)}, texts:2/6.")
    return joined(out, study)


def _share(share: str) -> tuple[int, int]:
    """`2/6` as (2, 6); nothing: all.

    Raises:
        InputError: it is none.
    """
    which, _, total = (share or "0/1").partition("/")
    if not (which.isdigit() and total.isdigit() and int(which) < int(total)):
        raise InputError(f"--part texts:{share} is no share: texts:0/6 to texts:5/6 are the sixths.")
    return int(which), int(total)
