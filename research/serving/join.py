"""Parts of the serving study, run apart, in one file."""

from __future__ import annotations

from collections.abc import Mapping

from spectralquant.results.files import results_file
from spectralquant.results.schema import Results

PREFIX = {"small": "", "large": "8b/", "tp": "tp2/"}


def joined(parts: Mapping[str, Results]) -> Results:
    """Rows of all parts, those of the large shape named `8b/…`, of two ranks `tp2/…`. Quality in the summary is the small
    model's; times to restore, and of decoding, are the large shape's where it was run.
    """
    first = next(iter(parts.values()))
    summary = dict(first.summary)
    if "large" in parts:
        large = parts["large"].summary
        summary |= {name: x for name, x in large.items() if name.startswith(("restore_", "decode_"))}
    if "tp" in parts:
        summary["tp2_same_text"] = parts["tp"].rows[-1].same_text
        summary["tp2_hit_share"] = parts["tp"].rows[-1].hit_share
    return results_file(
        "serving",
        [row.updated(way=PREFIX[name] + row.way) for name, part in parts.items() for row in part.rows],
        first.provenance,
        summary=summary,
        settings={name: {**part.settings, "provenance": part.provenance} for name, part in parts.items()},
        engine=first.engine,
        faults=[PREFIX[name] + fault for name, part in parts.items() for fault in part.faults],
    )
