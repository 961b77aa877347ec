"""`python -m research.serving.earlier OUT EARLIER`: parts of the serving study that OUT lacks, taken from an earlier file of it.

For a run that ended before all parts were measured. A part keeps the provenance it was measured with, so the file is listed as stale where its
parts are of several commits whose code differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from research.serving.join import PREFIX, joined
from research.serving.study import PARTS
from spectralquant.errors import InputError, SpectralQuantError
from spectralquant.files import write_json
from spectralquant.results.files import read_results, results_file
from spectralquant.results.schema import Results

SUMMARY = {
    "large": ("restore_",),
    "floor": ("floor_", "lossless_"),
    "decode": ("decode_",),
    "tp": ("tp2_",),
}
"""Beginnings of the summary's figures that `joined` takes from a part; all others are of part `small`."""
OTHERS = tuple(prefix for prefix in PREFIX.values() if prefix)


def parts_of(whole: Results) -> dict[str, Results]:
    """The parts that `joined` made a file of, by name."""
    return {name: _part(whole, name) for name in PARTS if name in whole.settings}


def _part(whole: Results, name: str) -> Results:
    prefix = PREFIX[name]
    own = lambda text: text.startswith(prefix) if prefix else not text.startswith(OTHERS)  # noqa: E731
    settings = dict(whole.settings[name])
    facts = settings.pop("provenance")
    elsewhere = tuple(begin for part in SUMMARY if part != name and part in whole.settings for begin in SUMMARY[part])
    figures = {
        key: x
        for key, x in whole.summary.items()
        if (key.startswith(SUMMARY[name]) if name in SUMMARY else not key.startswith(elsewhere))
    }
    return results_file(
        "serving",
        [row.updated(way=row.way.removeprefix(prefix)) for row in whole.rows if own(row.way)],
        facts,
        summary=figures,
        settings=settings,
        engine=whole.engine,
        faults=[fault.removeprefix(prefix) for fault in whole.faults if own(fault)],
    )


def completed(new: Results, earlier: Results) -> Results:
    """`new` with the parts of `earlier` that it lacks.

    Raises:
        InputError: a file is no serving study's, the devices differ, or there is nothing to take.
    """
    for one in (new, earlier):
        if not set(getattr(one, "settings", ())) & set(PARTS):
            raise InputError(
                f"{one.provenance.get('command')} wrote no file of `sq study serving`. Name one that it wrote."
            )
    devices = [one.provenance.get("device") for one in (new, earlier)]
    if devices[0] != devices[1]:
        raise InputError(
            f"One file is of {devices[0]}, the other of {devices[1]}: their times cannot stand side by side."
        )
    both = parts_of(earlier) | parts_of(new)
    if len(both) == len(parts_of(new)):
        raise InputError("The earlier file has no part that the new one lacks. There is nothing to take.")
    return joined({name: both[name] for name in PARTS if name in both})


def main(*arguments: str) -> int:
    """0: OUT is complete; 2: nothing was taken."""
    if len(arguments) != 2:
        print(str(__doc__).splitlines()[0], file=sys.stderr)
        return 2
    out, earlier = arguments
    try:
        if Path(out).exists() and Path(earlier).exists() and Path(out).samefile(earlier):
            raise InputError(f"{out} and {earlier} are the same file. Name an earlier one.")
        write_json(Path(out), completed(read_results(out), read_results(earlier)).as_json())
    except SpectralQuantError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{out} cannot be written: {error.strerror}. Copy it to a folder of your own.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
