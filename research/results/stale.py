"""Which results files are stale: made by code, a tree or a command that cannot be had from this checkout.

`make results-check` lists them. `profiles/results/stale.toml` is the one place that admits to them, with the reason;
`python -m research.results.stale --write` writes it anew. The docs name these files below their figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from research.results.table import entry
from spectralquant.files import write_text
from spectralquant.origin.used_code import changed_code, matters, said_by, unfolded

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "profiles" / "results"
LIST = RESULTS / "stale.toml"
NAMED_FILES = 4
HEAD = """\
# Results files that this checkout's code did not make, with the reason; the docs name them below their figures.
# A test fails when a file is stale and not listed, or listed and not stale.
# `python -m research.results.stale --write` writes this list anew; `make results` and `make results-gpu` make files anew.
"""


@dataclass(frozen=True)
class History:
    """The history of a checkout. A shallow clone does not know all of it."""

    root: Path = ROOT

    @cached_property
    def shallow(self) -> bool:
        """Whether commits may be ancestors that this clone has not got. Trees without git know no history at all."""
        return self._git("rev-parse", "--is-shallow-repository") != "false"

    def has(self, commit: str) -> bool | None:
        """Whether a commit is an ancestor of HEAD or HEAD; None: this clone cannot tell."""
        if self._git("merge-base", "--is-ancestor", commit, "HEAD") is not None:
            return True
        return None if self.shallow else False

    def differing(self, commits: Iterable[str], paths: Iterable[str]) -> list[str]:
        """Those of some files that do not say the same in all commits; of commits that this clone has not got, nothing is known."""
        first, *others = [commit for commit in commits if self._git("cat-file", "-e", commit) is not None] or [""]
        touched: set[str] = set()
        for other in others:
            touched |= set((self._git("diff", "--name-only", first, other) or "").splitlines())
        return [path for path in paths if path in touched and len({self._said(c, path) for c in (first, *others)}) > 1]

    def _said(self, commit: str, path: str) -> str:
        return said_by(path, self._git("show", f"{commit}:{path}") or "")

    def _git(self, *command: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(self.root), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()


def why_stale(result: Mapping[str, Any], history: History, only: tuple[str, ...] = ()) -> list[str]:
    """Everything that speaks against a results file; nothing where it is fresh.

    Parts that were made apart (a provenance of their own inside the file) must be as fresh as the whole; those that name no code
    of their own must be of its commit, or of one where its code says the same.
    only: beginnings of paths whose code matters (none: all).
    """

    def counts(path: str) -> bool:
        return matters(path) and (not only or path.startswith(only))

    whole = result["provenance"]
    out = [] if whole.get("command") else ["it names no command"]
    parts = [whole, *_inner({k: v for k, v in result.items() if k != "provenance"}), *_inner(whole.get("parts", {}))]
    for commit in dict.fromkeys(part.get("git_commit") for part in parts):
        if not commit:
            out.append("it names no commit")
        elif history.has(commit) is False:
            out.append(f"its commit {commit[:9]} is not in this history")
    if any(part.get("git_dirty") is not False for part in parts):
        out.append("its tree was not clean")
    # a part that names its own code is held against this checkout below, like the whole; others have used the whole's
    commits = [part.get("git_commit") for part in parts if part is whole or "code" not in part]
    if history.differing(dict.fromkeys(filter(None, commits)), filter(counts, unfolded(whole.get("code") or {}))):
        out.append("its parts are of several commits, whose code differs")
    changed: dict[str, None] = {}
    for part in parts:
        if part is not whole and "code" not in part:
            continue  # a part may leave its code to the whole
        if not part.get("code"):
            out.append("it does not tell which code it used")
        else:
            changed |= dict.fromkeys(filter(counts, changed_code(part["code"], history.root)))
    if changed:
        names = [path.removeprefix("spectralquant/").removeprefix("kernels/") for path in changed]
        more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
        out.append(f"its code has changed since: {', '.join(names[:NAMED_FILES])}{more}")
    return out


def _inner(value: Any) -> Iterator[Mapping[str, Any]]:
    """Provenances somewhere in a value: mappings that name a commit."""
    if isinstance(value, Mapping):
        if "git_commit" in value and value["git_commit"] is not None:
            yield value
        for each in value.values():
            yield from _inner(each)
    elif isinstance(value, list):
        for each in value:
            yield from _inner(each)


def stale_files(results: Path = RESULTS, history: History | None = None) -> dict[str, str]:
    """`{name: reasons}` of the stale files, by name without `.json`."""
    history = history or History()
    out = {}
    for file in sorted(results.glob("*.json")):
        known = entry(file.stem)
        if reasons := why_stale(json.loads(file.read_text(encoding="utf-8")), history, known.only if known else ()):
            out[file.stem] = "; ".join(reasons)
    return out


def listed(file: Path = LIST) -> dict[str, str]:
    """What the list admits to."""
    return dict(tomllib.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def written(stale: Mapping[str, str]) -> str:
    """The list as text."""
    return HEAD + "".join(f"{name} = {json.dumps(stale[name])}\n" for name in sorted(stale))


def main() -> int:
    """Print what is stale and not listed, and what is listed and fresh; 1 where there is any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the list anew")
    if parser.parse_args().write:
        write_text(LIST, written(stale_files()))
    stale, admitted = stale_files(), listed()
    for name, reasons in stale.items():
        print(f"{'stale, not listed' if name not in admitted else 'stale'}: {name}: {reasons}")
    for name in sorted(admitted.keys() - stale.keys()):
        print(f"listed, but fresh or gone: {name}")
    print(f"{len(stale)} of {len(list(RESULTS.glob('*.json')))} results files are stale.")
    return int(stale.keys() != admitted.keys())


if __name__ == "__main__":
    sys.exit(main())
