"""Loading a model for a profile: a foreign one is refused before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectralquant.models.load import LoadedModel
    from spectralquant.profile.model import CalibrationProfile


def load_for(
    profile: CalibrationProfile | None,
    spec: str | None,
    device: str,
    dtype: str,
    offline: bool,
    report: Callable[[str], None],
) -> LoadedModel:
    """The model `spec` (default: the profile's own), which must be the profile's where there is one.

    Raises:
        ProfileError: another model's profile. SourceError, UnsupportedModelError: see `load_model`.
    """
    from spectralquant.models.foreign import refuse_foreign_model
    from spectralquant.models.load import load_model
    from spectralquant.models.random_model import PREFIX

    name = spec or (profile.sidecar.model.name if profile is not None else "builtin:smollm2-135m")
    if profile is not None:
        refuse_foreign_model(profile.sidecar.model, name, offline=offline)
    loaded = load_model(name, device=device, dtype=dtype, offline=offline, report=report)
    if profile is not None:
        profile.require_model(loaded.model, loaded.name)
    if name.startswith(PREFIX):
        from sqcli.loading.random_text import TolerantBytes

        loaded = replace(loaded, tokenizer=TolerantBytes())
    return loaded
