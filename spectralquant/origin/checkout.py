"""Which commit this source tree is, also where a copy of it has no git.

Asked in this order:

1. the environment: `SQ_GIT_COMMIT` (with `SQ_GIT_DIRTY`: 1 or 0; without it unknown), for containers and build systems;
2. git, where the tree is a checkout;
3. `.provenance.json` at the root of the tree, which `make provenance` (or `python -m spectralquant.origin.checkout`) writes before
   a tree is copied to a machine without git. It names the commit, whether the tree differed from it, and a hash of the
   sources; a copy that was edited afterwards is dirty.

The file is not committed: it would be wrong with the next commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = ".provenance.json"
RESULTS, READ = "profiles/results/", ("profiles/results/profile-h100.json",)
CODE = ("spectralquant", "sqcli", "kernels", "research")
SOURCES = ("spectralquant", "sqcli", "kernels", "tests", "pyproject.toml")
COMMIT = re.compile(r"[0-9a-f]{7,64}")
FLAGS = {"1": True, "true": True, "0": False, "false": False}


@dataclass(frozen=True)
class SourceCommit:
    """commit: hexadecimal, None where nothing tells. dirty: whether the tree differs from it, new modules included, None where unknown; what
    measurements write under `profiles/results` does not count, but for the file that `research.prediction` reads."""

    commit: str | None = None
    dirty: bool | None = None


def source_commit(root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> SourceCommit:
    """The commit of the tree at `root` (nothing for an installed wheel). What cannot be understood is warned of."""
    if given := environment.get("SQ_GIT_COMMIT"):
        return _from_environment(given, environment.get("SQ_GIT_DIRTY", ""))
    found = _from_git(root) if (root / ".git").exists() else SourceCommit()
    return _from_file(root) if found.commit is None and (root / FILE).is_file() else found


_begun: list[SourceCommit] = []


def note_begin() -> None:
    """Remember the source as it is now: a long command calls this before it works, so that a change meanwhile is seen."""
    _begun[:] = [source_commit()]


def used_source() -> SourceCommit:
    """The commit of this process's code: that of `note_begin` where it was called, and dirty where the tree is another by now."""
    now = source_commit()
    if not _begun or _begun[0] == now:
        return now
    return SourceCommit(_begun[0].commit, True)


def write_provenance(root: Path = ROOT) -> Path:
    """Write `.provenance.json` of a git checkout; returns its path.

    Raises:
        RuntimeError: `root` is no checkout, or git cannot be run.
    """
    found = _from_git(root) if (root / ".git").exists() else SourceCommit()
    if found.commit is None:
        raise RuntimeError(f"{root} is not a git checkout whose commit git can tell. Set SQ_GIT_COMMIT instead.")
    path = root / FILE
    facts = {"git_commit": found.commit, "git_dirty": found.dirty, "sources_sha256": sources_sha256(root)}
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return path


def sources_sha256(root: Path = ROOT) -> str:
    """Hash of names and contents of the Python sources."""
    digest = hashlib.sha256()
    for top in SOURCES:
        place = root / top
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place] * place.is_file():
            data = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()


def _from_environment(commit: str, dirty: str) -> SourceCommit:
    if not COMMIT.fullmatch(commit.strip().lower()):
        warnings.warn(
            f"SQ_GIT_COMMIT={commit!r} is not a commit (7 to 64 hexadecimal digits); none is noted.", stacklevel=4
        )
        return SourceCommit()
    if dirty and dirty.lower() not in FLAGS:
        warnings.warn(f"SQ_GIT_DIRTY={dirty!r} is not 0 or 1; it is noted as unknown.", stacklevel=4)
    return SourceCommit(commit.strip().lower(), FLAGS.get(dirty.lower()))


def _from_git(root: Path) -> SourceCommit:
    def run(*command: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        differing = run("diff", "--name-only", "--no-renames", "-z", "HEAD").split("\0")
        new = run("ls-files", "--others", "--exclude-standard", "-z", "--", *(f"{top}/*.py" for top in CODE)).split(
            "\0"
        )
        return SourceCommit(run("rev-parse", "HEAD"), any(map(_counts, [*differing, *new])))
    except (OSError, subprocess.SubprocessError):
        return SourceCommit()


def _counts(path: str) -> bool:
    """Whether a file that differs from the commit makes the tree another."""
    return bool(path) and (path in READ or not path.startswith(RESULTS))


def _from_file(root: Path) -> SourceCommit:
    try:
        facts = json.loads((root / FILE).read_text(encoding="utf-8"))
        commit, dirty, sources = (facts[name] for name in ("git_commit", "git_dirty", "sources_sha256"))
        if not COMMIT.fullmatch(commit) or not isinstance(dirty, bool):
            raise ValueError("git_commit or git_dirty is not what `make provenance` writes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"{root / FILE} is damaged ({error}); no commit is noted.", stacklevel=4)
        return SourceCommit()
    return SourceCommit(commit, dirty or sources != sources_sha256(root))


if __name__ == "__main__":
    print(f"Wrote {write_provenance()}")
