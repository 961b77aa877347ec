"""Parts of the serving study, run apart, in one file."""

from __future__ import annotations

from collections.abc import Mapping

from spectralquant.results.files import results_file
from spectralquant.results.schema import Results

PREFIX = {"small": "", "large": "8b/", "tp": "tp2/", "floor": "floor/", "decode": "8b-decode/"}


def joined(parts: Mapping[str, Results]) -> Results:
    """Rows of all parts, those of the large shape named `8b/…` and `8b-decode/…`, of two ranks `tp2/…`, of what no codec has a part in `floor/…`.
    Quality in the summary is the small model's; times to restore, and of decoding, are the large shape's where it was run.
    """
    first = next(iter(parts.values()))
    summary = dict(first.summary)
    for name in ("floor", "decode"):
        own = parts[name].summary if name in parts else {}
        summary |= {figure: x for figure, x in own.items() if x is not None}
    if "large" in parts:
        large = parts["large"].summary
        summary |= {name: x for name, x in large.items() if name.startswith("restore_")}
    if "tp" in parts:
        last = parts["tp"].rows[-1]
        summary |= {"tp2_same_text": last.same_text, "tp2_hit_share": last.hit_share}
        summary |= {f"tp2_restore_over_recompute_{int(n) // 1024}k": x for n, x in last.long_over_recompute.items()}
    return results_file(
        "serving",
        [row.updated(way=PREFIX[name] + row.way) for name, part in parts.items() for row in part.rows],
        first.provenance,
        summary=summary,
        settings={name: {**part.settings, "provenance": part.provenance} for name, part in parts.items()},
        engine=first.engine,
        faults=[PREFIX[name] + fault for name, part in parts.items() for fault in part.faults],
    )
