"""`sq study quality`: its texts opened, its parts run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectralquant.text.mix import MixedText
    from sqcli.output import Output

READ_TOKENS = 4_000_000


def run_quality(
    model: str,
    specs: tuple[list[str], list[str], list[str], list[str]],
    parts: list[str] | None,
    sizes: tuple[int, int, int],
    device: str,
    dtype: str,
    out: Path,
    output: Output,
) -> None:
    """Run parts (None: all) and write what is there so far. specs: texts of the mix, of its kinds, of others, and more."""
    from research.quality.parts import QualityStudy
    from research.quality.study import PARTS, QualityParts, joined
    from spectralquant.errors import InputError
    from spectralquant.files import write_json
    from spectralquant.models.load import load_model
    from spectralquant.text.mix import tokenize_sources
    from spectralquant.text.read import open_sources, text_name
    from sqcli.terminal.study import study_view

    steps, window, windows = sizes
    study = QualityStudy(steps=steps, general_steps=steps, window=window, windows=windows)
    loaded = load_model(model, device=device, dtype=dtype, report=output.note)

    def text(some: list[str], read: int) -> MixedText:
        sources = open_sources(some, report=output.note)
        return tokenize_sources(loaded.tokenizer, sources, window, window=window, read=read, report=output.note)

    def reader(spec: str) -> Callable[[], MixedText]:
        return lambda: text([spec], study.text_tokens)

    with output.progress() as bar:
        run = QualityParts(out, loaded, study, bar)
        for part in parts or PARTS:
            name, _, share = part.partition(":")
            if name == "home":
                run.home(text(specs[0][:1], READ_TOKENS), specs[0][0])
            elif name == "general":
                need = study.general_steps * window + 2 * study.held_out * 1024
                sources = open_sources(specs[0], report=output.note)
                mix = tokenize_sources(loaded.tokenizer, sources, need, window=window, report=output.note)
                run.general(mix, text_name(sources))
            elif name == "texts":
                which, _, total = share.partition("/")
                kinds = zip(("in the mix", "outside", "more"), specs[1:], strict=True)
                texts = [(kind, spec, reader(spec)) for kind, some in kinds for spec in some]
                run.texts(texts, (int(which or 0), int(total or 1)))
            else:
                raise InputError(f"--part {part!r} is not one of {', '.join(PARTS)}, texts:2/6.")
    result = joined(out, study)
    write_json(out, result)
    output.show(*study_view(result))
    output.note(f"Wrote {out}")
