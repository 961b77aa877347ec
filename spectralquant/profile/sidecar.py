"""Reading a profile's JSON sidecar, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from spectralquant.errors import ProfileError
from spectralquant.files import file_sha256, read_json, user_path
from spectralquant.profile.schema import SCHEMA_VERSION, ProfileSidecar
from spectralquant.profile.shapes import check_sidecar


def load_sidecar(path: str | Path) -> ProfileSidecar:
    """Read and check the JSON sidecar alone.

    Raises:
        ProfileError: missing, not JSON, another schema version, or fields that do not fit.
    """
    stem = profile_stem(path)
    file = stem.with_name(stem.name + ".json")
    if not file.is_file():
        raise ProfileError(f"There is no profile {file}. Make one with `sq calibrate --out {stem}`.")
    raw = read_json(file, "The profile", ProfileError)
    if not isinstance(raw, dict) or raw.get("kind") != "spectralquant.profile":
        raise ProfileError(f"{file} is JSON, but not a SpectralQuant profile.")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ProfileError(
            f"{file} has profile schema {raw.get('schema_version')}; this program reads "
            f"{SCHEMA_VERSION}. Calibrate again."
        )
    try:
        sidecar = ProfileSidecar.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise ProfileError(f"{file} is damaged: field {where}: {first['msg']}. Calibrate again.") from error
    check_sidecar(sidecar, file)
    if sidecar.sidecar_sha256 and not _intact(file.read_text(encoding="utf-8"), sidecar.sidecar_sha256):
        raise ProfileError(
            f"{file} was changed after it was written (checksum): it is damaged, or edited by hand. Restore it, or calibrate again."
        )
    sidecar.sidecar_sha256 = ""
    return sidecar


def sealed_sidecar(sidecar: ProfileSidecar) -> str:
    """The sidecar's file, with its own checksum in it."""
    text = sidecar.model_copy(update={"sidecar_sha256": ""}).model_dump_json(indent=2) + "\n"
    return _with_hash(text, "", hashlib.sha256(text.encode()).hexdigest())


def _intact(text: str, found: str) -> bool:
    return hashlib.sha256(_with_hash(text, found, "").encode()).hexdigest() == found


def _with_hash(text: str, old: str, new: str) -> str:
    return text.replace(f'"sidecar_sha256": "{old}"', f'"sidecar_sha256": "{new}"', 1)


def check_tensor_file(file: Path, sidecar: ProfileSidecar, *, verify: bool = True) -> None:
    """Raise `ProfileError` unless the tensor file has the size and (with `verify`) the SHA-256 that the sidecar names."""
    if not file.is_file():
        raise ProfileError(f"{file} is missing; a profile is a .json and a .safetensors file side by side.")
    if file.stat().st_size != sidecar.tensor_bytes or (verify and file_sha256(file) != sidecar.tensors_sha256):
        raise ProfileError(
            f"{file} does not match its sidecar (size or SHA-256): it is damaged or belongs to another run. Calibrate again."
        )


def profile_stem(path: str | Path) -> Path:
    """The path without .json or .safetensors.

    Raises:
        ProfileError: a path without a name.
    """
    path = user_path(path)
    if not path.name:
        raise ProfileError(f"{str(path)!r} names no profile. Give the path of its .json, with or without that ending.")
    return path.with_suffix("") if path.suffix in {".json", ".safetensors"} else path
