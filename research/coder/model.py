"""The coder's study on a model and text of one's own."""

from __future__ import annotations

from research.coder.study import Progress, coder_study
from research.coder.symbols import SymbolSample
from spectralquant.cache.persist.prompt import pack_prompt, profile_codecs
from spectralquant.models.load import LoadedModel
from spectralquant.models.shapes import ModelShape
from spectralquant.profile.model import CalibrationProfile
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.tokens import TokenText


def sample_of_model(
    loaded: LoadedModel, profile: CalibrationProfile, text: TokenText, window: int, text_name: str
) -> SymbolSample:
    """Symbols of the last `window` tokens of a text."""
    packet = pack_prompt(loaded.model, profile, text.windows(window)[-1:].to(loaded.device))[0]
    source = f"{loaded.name}, profile {profile.sidecar.tensors_sha256[:12]}, last {window} tokens of {text_name}"
    return SymbolSample.of_packet(profile_codecs(loaded.model, profile, loaded.geometry.groups)[0], packet, source)


def coder_study_of_model(
    loaded: LoadedModel,
    profile: CalibrationProfile,
    text: TokenText,
    window: int,
    text_name: str,
    progress: Progress = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """See `coder.coder_study`."""
    progress("packing a prompt", 0, 1)
    sample = sample_of_model(loaded, profile, text, window, text_name)
    shape = ModelShape.of_config(loaded.name, loaded.model.config)
    return coder_study(sample, shape, loaded.device, progress=progress, kept=kept)
