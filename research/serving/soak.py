"""`python -m research.serving.soak SECONDS OUT [PROFILE]`: random prefixes through a server on loopback, over a small store.

The server's own prefix cache is made too small to hold two prompts, so that every hit is the store's. A plain list of the
prefixes used least recently, of as many chunks as the store holds, says which requests should hit.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from research.serving.server import Server
from spectralquant.files import write_json
from spectralquant.integrations.serve_check.machine import engine_arguments, model_folder
from spectralquant.integrations.store import PacketStore
from spectralquant.provenance import provenance

PREFIXES = 60
TOKENS = 128
OWN = 16
HELD = 20
SETTLED = 0.25


def soak(seconds: float, profile: str | None, folder: Path) -> dict[str, Any]:
    """Requests for `seconds`; memory every few seconds, hits against those of a plain list."""
    engine_arguments(1, True)
    store, draw = folder / "store", random.Random(0)
    model = str(model_folder("builtin:smollm2-135m", offline=True, report=print))
    packet = _packet_bytes(model, profile, folder)
    budget = int((HELD + 0.5) * packet / 0.95)
    environment = {"SQ_MODEL": model, "SQ_STORE": str(store), "SQ_BUDGET": str(budget), "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"SQ_PROFILE": profile} if profile else {}
    recent: OrderedDict[int, None] = OrderedDict()
    hits, plain, requests, memory, usage = 0, 0, 0, [], []
    start = noted = time.monotonic()
    with Server(environment, _arguments(), folder / "server.log") as server:
        start = noted = time.monotonic()
        while time.monotonic() - start < seconds:
            prefix = min(int(draw.paretovariate(0.7)), PREFIXES)
            plain += prefix in recent
            recent[prefix] = None
            recent.move_to_end(prefix)
            if len(recent) > HELD:
                recent.popitem(last=False)
            hits += _cached(server, _prompt(prefix, draw)) >= TOKENS
            requests += 1
            if time.monotonic() - noted > 2:
                noted = time.monotonic()
                memory.append(server.memory())
                usage.append(_bytes(store))
    tail = memory[int(SETTLED * len(memory)) :]
    return {
        "kind": "soak",
        "provenance": provenance(),
        "seconds": time.monotonic() - start,
        "requests": requests,
        "hit_share": hits / requests,
        "plain_lru_hit_share": plain / requests,
        "budget": budget,
        "most_bytes_in_store": max(usage),
        "memory_bytes": memory,
        "memory_growth": statistics.mean(tail[-5:]) / statistics.mean(tail[:5]) - 1,
        "left_over_files": len(list(store.rglob("*.tmp"))),
    }


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="sq-soak-") as made:
        write_json(sys.argv[2], soak(float(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else None, Path(made)))
