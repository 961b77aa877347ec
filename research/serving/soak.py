"""`python -m research.serving.soak SECONDS OUT`: random prefixes through a server on loopback, over a small store.

The server's own prefix cache is made too small to hold two prompts, so that every hit is the store's. A plain list of the
prefixes used least recently, of as many as the store holds, says which requests should hit. The exit code is 1 where memory
grows, hits are not those of the list, or the store passes its budget or leaves files behind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from research.serving.server import Server
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.integrations.store import PacketStore
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import SoakRow

PREFIXES = 60
TOKENS = 128
OWN = 16
HELD = 20
SETTLED = 0.25
SEEN_EVERY = 2.0
MOST_GROWTH = 0.03
MOST_APART = 0.03


class Plain:
    """A list of the `HELD` prefixes used most recently."""

    def __init__(self) -> None:
        self._recent: OrderedDict[int, None] = OrderedDict()

    def use(self, prefix: int) -> bool:
        """Whether it was in the list."""
        hit = prefix in self._recent
        self._recent[prefix] = None
        self._recent.move_to_end(prefix)
        if len(self._recent) > HELD:
            self._recent.popitem(last=False)
        return hit


def soak(seconds: float, profile: str | None, folder: Path) -> Results:
    """Requests for `seconds`; every two seconds memory, bytes in the store, and hits against those of a plain list."""
    engine_arguments(1, True)
    store, draw, plain = folder / "store", random.Random(0), Plain()
    model = str(model_folder("builtin:smollm2-135m", offline=True, report=print))
    packet = _packet_bytes(model, profile, folder)
    budget = int((HELD + 0.5) * packet / 0.95)
    environment = {"SQ_MODEL": model, "SQ_STORE": str(store), "SQ_BUDGET": str(budget), "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"SQ_PROFILE": profile} if profile else {}
    hits, plain_hits, requests = 0, 0, 0
    rows: list[SoakRow] = []
    with Server(environment, _arguments(), folder / "server.log") as server:
        start = seen = time.monotonic()
        while (now := time.monotonic()) - start < seconds:
            prefix = min(int(draw.paretovariate(0.7)), PREFIXES)
            plain_hits += plain.use(prefix)
            hits += _cached(server, _prompt(prefix, draw)) >= TOKENS
            requests += 1
            if now - seen > SEEN_EVERY:
                seen = now
                rows.append(
                    SoakRow(
                        seconds=round(now - start, 1),
                        requests=requests,
                        hits=hits,
                        plain_hits=plain_hits,
                        memory_bytes=server.memory(),
                        stored_bytes=_bytes(store),
                    )
                )
    summary: dict[str, float | None] = {
        "seconds": rows[-1].seconds,
        "requests": requests,
        "hit_share": hits / requests,
        "plain_lru_hit_share": plain_hits / requests,
        "memory_growth": growth([row.memory_bytes for row in rows]),
        "budget_bytes": budget,
        "most_bytes_in_store": max(row.stored_bytes for row in rows),
        "left_over_files": len(list(store.rglob("*.tmp"))),
    }
    settings = {"prefixes": PREFIXES, "tokens": TOKENS, "held": HELD, "codec": "lossless"}
    if profile:
        settings["codec"] = Path(profile).name
    return results_file("serving-soak", rows, provenance(), summary=summary, settings=settings, faults=faults(summary))


def growth(memory: Sequence[int]) -> float:
    """Of memory at the end over that after a quarter of the time, less one; either the median of a tenth of all samples."""
    settled = memory[int(SETTLED * len(memory)) :]
    count = max(1, len(memory) // 10)
    return statistics.median(settled[-count:]) / statistics.median(settled[:count]) - 1


def faults(summary: dict[str, float | None]) -> list[str]:
    """What should not be, a line each."""
    grown, hit, plain = (summary[name] or 0.0 for name in ("memory_growth", "hit_share", "plain_lru_hit_share"))
    most, budget, left = (summary[name] or 0.0 for name in ("most_bytes_in_store", "budget_bytes", "left_over_files"))
    out = []
    if grown > MOST_GROWTH:
        out.append(f"memory grew by {grown:.1%}")
    if abs(hit - plain) > MOST_APART:
        out.append(f"{hit:.1%} of the requests hit, and {plain:.1%} would with a plain list")
    if most > 1.05 * budget:
        out.append(f"the store held {most:,.0f} bytes of {budget:,.0f}")
    if left:
        out.append(f"{left:.0f} temporary files were left")
    return out


def _arguments() -> list[str]:
    return [
        *["--max-model-len", "256", "--enforce-eager", "--dtype", "bfloat16", "--num-gpu-blocks-override", "5"],
        *["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"],
    ]


def _prompt(prefix: int, draw: random.Random) -> list[int]:
    ids = random.Random(prefix)
    return [ids.randrange(100, 40_000) for _ in range(TOKENS)] + [draw.randrange(100, 40_000) for _ in range(OWN)]


def _cached(server: Server, ids: list[int]) -> int:
    answer = server.post("/invocations", {"prompt": ids, "max_tokens": 3, "temperature": 0})
    return int((answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def _packet_bytes(model: str, profile: str | None, folder: Path) -> int:
    """Bytes on disk of one prefix's packet, by serving a few."""
    store = folder / "first"
    environment = {"SQ_MODEL": model, "SQ_STORE": str(store), "SQ_BUDGET": "1GB"} | (
        {"SQ_PROFILE": profile} if profile else {}
    )
    with Server(environment, _arguments(), folder / "first.log") as server:
        for prefix in range(6):
            _cached(server, _prompt(1000 + prefix, random.Random(0)))
    count, size = PacketStore(store, "none", 10**9).disk_usage()
    return size // count


def _bytes(store: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in store.rglob("*.sqchunk") if path.exists())


def main() -> int:
    """0: nothing is wrong; 1: something is, and the file says what."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--profile", help="a profile for serving; by default every bit is kept")
    given = parser.parse_args()
    profile = str(Path(given.profile).absolute()) if given.profile else None
    with tempfile.TemporaryDirectory(prefix="sq-soak-") as made:
        result = soak(given.seconds, profile, Path(made))
    write_json(given.out, result.as_json())
    for line in result.faults:
        print(line, file=sys.stderr)
    return int(bool(result.faults))


if __name__ == "__main__":
    sys.exit(main())
