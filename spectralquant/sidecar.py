"""Reading a profile's JSON sidecar, without torch."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from spectralquant.errors import ProfileError
from spectralquant.profile_schema import SCHEMA_VERSION, ProfileSidecar


def load_sidecar(path: str | Path) -> ProfileSidecar:
    """Read and check the JSON sidecar alone.

    Raises:
        ProfileError: missing, not JSON, another schema version, or fields that do not fit.
    """
    stem = profile_stem(path)
    file = stem.with_name(stem.name + ".json")
    if not file.is_file():
        raise ProfileError(f"There is no profile {file}. Make one with `sq calibrate --out {stem}`.")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ProfileError(f"{file} is not a profile: {error}. Calibrate again.") from error
    if not isinstance(raw, dict) or raw.get("kind") != "spectralquant.profile":
        raise ProfileError(f"{file} is JSON, but not a SpectralQuant profile.")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ProfileError(
            f"{file} has profile schema {raw.get('schema_version')}; this program reads "
            f"{SCHEMA_VERSION}. Calibrate again."
        )
    try:
        return ProfileSidecar.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ProfileError(f"{file} is damaged: field {where}: {first['msg']}. Calibrate again.") from error


def profile_stem(path: str | Path) -> Path:
    """The path without .json or .safetensors."""
    path = Path(path).expanduser()
    return path.with_suffix("") if path.suffix in {".json", ".safetensors"} else path
