"""`hub:NAME[:config][:split][:column]`: data sets of the hub, streamed by `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator

from spectralquant.errors import SourceError
from spectralquant.hub_log import quiet_hub
from spectralquant.text.documents.columns import RowReader
from spectralquant.text.documents.report import Report
from spectralquant.text.documents.rows import guarded_rows


def hub_documents(rest: str, offline: bool, report: Report) -> Iterator[str]:
    """Documents of a data set.

    Raises:
        SourceError: no network allowed, not found, or without text.
    """
    name, config, split, column = (rest.split(":") + [""] * 3)[:4]
    if offline or os.environ.get("HF_HUB_OFFLINE"):
        raise SourceError(
            f"hub:{name} needs the network and --offline (or HF_HUB_OFFLINE) forbids it. "
            "Use file:PATH or builtin:pydoc."
        )
    import datasets

    datasets.disable_progress_bars()
    rows = guarded_rows(
        lambda: datasets.load_dataset(name, config or None, split=split or "train", streaming=True),
        f"hub:{name} cannot be read (check the name, config and split, hub:NAME:config:split:column, and the network)",
    )
    reader = RowReader(f"hub:{name}", column or None, "hub:NAME:config:split:COLUMN")
    with quiet_hub(report):
        yield from reader.documents(rows, report)
