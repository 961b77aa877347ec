"""What coding at GPU speed costs in quality: float16 products, and blocks whose attention nobody saw.

`python -m research.cold_speed.costs PROFILE TEXT OUT.json [--windows 2]` measures a profile's own model on the last windows of a text.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from spectralquant.results.schema import Results
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

WINDOW = 2048
STEPS = (0.4, 0.55, 0.7, 0.85, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class UnseenCold(SpectralCold):
    """The cold tier of a caller without attention."""

    def encode(self, block: KVBlock) -> Any:
        return super().encode(replace(block, received=None))


def cost_study(loaded: LoadedModel, profile: CalibrationProfile, windows: torch.Tensor, source: str) -> Results:
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


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    seen = {r["options"]["products"]: r for r in rows if r["options"]["attention"] == "seen"}
    base = seen["float32"]
    unseen = sorted((r["coded_bytes"], r["kl_nats"]) for r in rows if r["options"]["attention"] == "unseen")
    by_kl = sorted((kl, size) for size, kl in unseen)
    kl, size = _at(unseen, base["coded_bytes"]), _at(by_kl, base["kl_nats"])
    return {
        "unseen_kl_at_equal_bytes": None if kl is None else kl / base["kl_nats"],
        "unseen_bytes_at_equal_kl": None if size is None else size / base["coded_bytes"],  # None: beyond the steps
        "kl_float16_over_float32": seen["float16"]["kl_nats"] / base["kl_nats"],
        "kl_bfloat16_over_float32": seen["bfloat16"]["kl_nats"] / base["kl_nats"],
        "bytes_float16_over_float32": seen["float16"]["coded_bytes"] / base["coded_bytes"],
    }


@dataclass(frozen=True)
class QualityOf:
    """A profile, a text's name, and what loads the profile's model on a device with some windows int64 `[n, W]` of that text."""

    profile: CalibrationProfile
    source: str
    load: Callable[[torch.device], tuple[LoadedModel, torch.Tensor]]

    @classmethod
    def read(cls, path: str, text: str, count: int) -> QualityOf:
        """Of a profile's file and the last windows of a text (`--data`)."""
        profile = CalibrationProfile.load(path)

        def load(device: torch.device) -> tuple[LoadedModel, torch.Tensor]:
            loaded = load_model(profile.sidecar.model.name, device=str(device), dtype="float32", offline=True)
            tokens = tokenize(loaded.tokenizer, load_text(text, offline=True), 4_000_000)
            return loaded, tokens.windows(WINDOW)[-count:]

        return cls(profile, text, load)


def quality_facts(of: QualityOf, device: torch.device) -> dict[str, Any]:
    """`cost_study`'s rows and summary, in short."""
    loaded, windows = of.load(device)
    result = cost_study(loaded, of.profile, windows, of.source)
    names = ("kl_nats", "delta_ppl", "top1", "coded_bytes", "payload_ratio", "n_tokens")
    rows = [r["options"] | {name: r[name] for name in names} for r in result.as_json()["rows"]]
    return {"model": loaded.name, "text": of.source, "rows": rows, **result["summary"]}


def _at(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """A curve's value at x, log-log between its points; None beyond them."""
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= x <= x1:
            return math.exp(math.log(y0) + math.log(x / x0) / math.log(x1 / x0) * math.log(y1 / y0))
    return None


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("profile")
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    of = QualityOf.read(arguments.profile, arguments.text, arguments.windows)
    loaded, windows = of.load(torch.device(arguments.device))
    result = cost_study(loaded, of.profile, windows, arguments.text)
    write_json(arguments.out, result.as_json())
    print(result["summary"])


if __name__ == "__main__":
    main()
