"""`python -m research.serving.join SMALL LARGE OUT`: two parts of the serving study, run apart, in one file."""

from __future__ import annotations

import sys
from pathlib import Path

from spectralquant.files import write_json
from spectralquant.results.files import read_results, results_file
from spectralquant.results.schema import Results


def joined(small: Results, large: Results) -> Results:
    """Rows of both, those of the large shape named `8b/…`; times of long prompts in the summary are the large shape's."""
    rows = [*small.rows, *(row.updated(way=f"8b/{row.way}") for row in large.rows)]
    summary = dict(small.summary) | {name: x for name, x in large.summary.items() if name.startswith("restore_")}
    return results_file(
        "serving",
        rows,
        large.provenance,
        summary=summary,
        settings={"small": small.settings, "8b": large.settings, "provenance of small": small.provenance},
        engine=large.engine,
        faults=[*small.faults, *(f"8b/{fault}" for fault in large.faults)],
    )


if __name__ == "__main__":
    write_json(sys.argv[3], joined(*(read_results(Path(name)) for name in sys.argv[1:3])).as_json())
