"""Coverage-guided fuzzing of everything that reads files from outside, with atheris (not a dependency of the project).

    pip install --target /tmp/atheris --no-deps atheris
    PYTHONPATH=.:kernels:tests:/tmp/atheris python tests/fuzz.py FOLDER -max_total_time=600 -timeout=60 -rss_limit_mb=6000

FOLDER collects inputs that reached new code, and begins with those of `tests/hostile_corpus.txt` (a line each,
hexadecimal). An input is a few bytes: see `hostile_for_tests`. What is raised beyond the library's own errors, a hang, or too much memory ends the run and leaves
the input in a file `crash-…`, `timeout-…` or `oom-…`; add it to that file, where it is a test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

OURS = [
    "spectralquant.cache",
    "spectralquant.codec",
    "spectralquant.profile",
    "spectralquant.files",
    "sqcli.commands",
    "sqcli.html",
    "sqcli.terminal",
    "sqkernels",
]

with atheris.instrument_imports(include=OURS):
    from hostile_for_tests import KINDS, edited, material, run


def main() -> None:
    """Fuzz until the time is up."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(Path(__file__).with_name("hostile_corpus.txt").read_text().split()):
        (folder / f"known-{number}").write_bytes(bytes.fromhex(line))
    material()

    def mutated(data: bytes, size: int, seed: int) -> bytes:
        """Half of the time whole edits are changed, so that inputs stay lists of edits."""
        if seed % 2 or len(data) < 5:
            return atheris.Mutate(data, size)
        cut = 1 + seed // 2 % len(data)
        return (bytes([seed // 7 % (2 * len(KINDS))]) + edited(data[1:cut], data[cut:]) + data[1:])[:size]

    atheris.Setup(sys.argv, lambda data: run(data) and None, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
