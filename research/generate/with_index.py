"""`python -m research.generate.with_index GENERATE INDEX`: what the index costs, from `sq study index`, in the summary of `generate`.

Speed is measured at a shape with random weights, quality on a real model. The row taken is the one of least KL among those that
read at most 5 % of the layers' bytes, index and selected codes together; where there is none, of all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spectralquant.files import write_json
from spectralquant.results.files import read_results
from spectralquant.results.quality import MethodRow

MOST_BYTES = 0.05


def bytes_share(row: MethodRow) -> float:
    """Of fp16 keys and values, what a step reads by this row's selection."""
    return row.index_share_of_fp16 + row.options["share"] * row.codes_share_of_fp16


def index_summary(rows: Sequence[MethodRow]) -> dict[str, float]:
    """index_kl_nats and index_bytes_share of the row that is taken."""
    some = [r for r in rows if bytes_share(r) <= MOST_BYTES] or list(rows)
    best = min(some, key=lambda r: r.kl_nats)
    return {"index_kl_nats": best.kl_nats, "index_bytes_share": bytes_share(best)}


def joined(generate: dict[str, Any], index: Any, name: str) -> dict[str, Any]:
    """The `generate` results with the index in their summary, and where that comes from in their provenance."""
    source = {"file": name} | {
        k: index.provenance.get(k) for k in ("command", "git_commit", "git_dirty", "model", "profile")
    }
    generate["summary"] |= index_summary(index.rows)
    generate["provenance"]["index_study"] = source
    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generate", type=Path)
    parser.add_argument("index", type=Path)
    options = parser.parse_args()
    result = read_results(options.generate).model_dump(mode="json", exclude_unset=True)
    write_json(options.generate, joined(result, read_results(options.index), options.index.name))


if __name__ == "__main__":
    main()
