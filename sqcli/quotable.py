"""What a command says about a result that nobody should quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectralquant.results.schema import Results


def quotable_note(result: Results) -> str | None:
    """One line with the reasons, or None where the result may be quoted."""
    reasons = result.provenance.get("not_quotable")
    return f"Not quotable: {'; '.join(reasons)}." if reasons else None
