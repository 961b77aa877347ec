"""What coding at GPU speed costs in quality: float16 products, and blocks whose attention nobody saw.

`python -m research.cold_speed.costs PROFILE TEXT OUT.json [--windows 2]` measures a profile's own model on the last windows of a text.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from spectralquant.codec.block import KVBlock
from spectralquant.codec.cold.spectral import SpectralCodec
from spectralquant.evaluation.measure import measure
from spectralquant.files import write_json
from spectralquant.methods.coding.spectral import SpectralCold
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.models.weights import embedding_weight
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import results_file
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

WINDOW = 2048
STEPS = (0.8, 0.9, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class UnseenCold(SpectralCold):
    """The cold tier of a caller without attention."""

    def encode(self, block: KVBlock) -> Any:
        return super().encode(replace(block, received=None))


def cost_study(loaded: LoadedModel, profile: CalibrationProfile, windows: torch.Tensor, source: str) -> dict[str, Any]:
    """Rows of every precision with attention seen, and of every step without; the cost in bytes at equal KL."""
    tier, embedding = profile.tier("cold"), embedding_weight(loaded.model)

    def codec(step: float = 1.0, dtype: torch.dtype = torch.float32) -> SpectralCodec:
        return SpectralCodec(tier, loaded.geometry, embedding, loaded.device, step, dtype=dtype)

    methods = [SpectralCold(codec(dtype=d), attention="seen", products=str(d).removeprefix("torch.")) for d in DTYPES]
    methods += [UnseenCold(codec(s), attention="unseen", products="float32", step_scale=s) for s in STEPS]
    rows = [
        m.row(loaded.geometry, loaded.name, windows.shape[1])
        for m in measure(loaded.model, loaded.geometry, windows, methods)
    ]
    return results_file(
        "cold-costs", rows, provenance(**device_facts(loaded.device), text=source), summary=_summary(rows)
    )


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    seen = {r["options"]["products"]: r for r in rows if r["options"]["attention"] == "seen"}
    base = seen["float32"]
    unseen = [(r["kl_nats"], r["coded_bytes"]) for r in rows if r["options"]["attention"] == "unseen"]
    return {
        "unseen_bytes_at_equal_kl": _bytes_at(sorted(unseen), base["kl_nats"]) / base["coded_bytes"],
        "kl_float16_over_float32": seen["float16"]["kl_nats"] / base["kl_nats"],
        "kl_bfloat16_over_float32": seen["bfloat16"]["kl_nats"] / base["kl_nats"],
        "bytes_float16_over_float32": seen["float16"]["coded_bytes"] / base["coded_bytes"],
    }


def _bytes_at(curve: Sequence[tuple[float, float]], kl: float) -> float:
    """Bytes at a KL, log-log between (or beyond) the two nearest points of a curve that rises in KL."""
    near = min(range(len(curve) - 1), key=lambda i: abs(math.log(curve[i][0] * curve[i + 1][0] / kl**2)))
    (k0, b0), (k1, b1) = curve[near], curve[near + 1]
    share = math.log(kl / k0) / math.log(k1 / k0)
    return math.exp(math.log(b0) + share * math.log(b1 / b0))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("profile")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    profile = CalibrationProfile.load(arguments.profile)
    loaded = load_model(profile.sidecar.model.name, dtype="float32", offline=True)
    text = tokenize(loaded.tokenizer, load_text(arguments.text, offline=True), 4_000_000)
    result = cost_study(loaded, profile, text.windows(WINDOW)[-arguments.windows :], arguments.text)
    write_json(arguments.out, result)
    print(result["summary"])


if __name__ == "__main__":
    main()
