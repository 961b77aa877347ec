"""The block that the results page opens with."""

from __future__ import annotations

from research.readme.tools import load, table
from sqcli.terminal.headline import OWN, quality_grid, speed_grid


def sceptic() -> str:
    """Model x text x method at equal quality, then speeds on the named GPU."""
    result = load("headline")
    head, *rows = quality_grid(result)
    bold = head.index(OWN)
    kl = result.rows[0].kl_nats
    body = [[f"**{cell}**" if place == bold else cell for place, cell in enumerate(row)] for row in rows]
    out = f"Payload ratio at KL {kl:g} nats/token (windows of {result.rows[0].context:,} tokens; MB: the own profile's):\n\n"
    out += table(list(head), body)
    if result.speed:
        first = result.speed[0]
        head, *rows = speed_grid(result.speed)
        out += f"\n\n{first.device}, one window of {first.context:,} tokens, every method block by block:\n\n"
        out += table(list(head), [list(row) for row in rows])
    return out
