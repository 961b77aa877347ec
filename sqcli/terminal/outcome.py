"""What a profile reached, in words: one sentence that leads, aimed at against measured, and what to type next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from sqcli.figures import shown

if TYPE_CHECKING:
    from spectralquant.profile.schema import ProfileSidecar, TierSummary

NEAR = 0.05  # how far a ratio may lie from its aim without an explanation
QUANTITIES = {"kl": ("KL", "kl_nats"), "dppl": ("ΔPPL", "delta_ppl")}


def headline(side: ProfileSidecar) -> str:
    """`30.2 times smaller at KL 0.0021 nats/token on text it has not seen (cold tier).` of the first measured tier."""
    for name, tier in side.tiers.items():
        m = _figures(tier)
        if "payload_ratio" in m and "kl_nats" in m:
            return (
                f"{shown('payload_ratio', m['payload_ratio'])} times smaller at KL {shown('kl_nats', m['kl_nats'])} nats/token on text it has not seen "
                f"({name} tier{', restored by a serving engine' if side.serving and name == 'cold' else ''})."
            )
    return "Not measured on text that it has not seen."


def serving_tiers(side: ProfileSidecar) -> Collection[str]:
    """Tiers of a profile for serving engines; none of another."""
    return () if side.serving is None else tuple(side.tiers)


def _figures(tier: TierSummary) -> dict[str, float]:
    """What was measured of a tier, without figures that a file leaves empty."""
    return {name: value for name, value in (tier.measured or {}).items() if value is not None}


def aims(side: ProfileSidecar) -> list[str]:
    """One line a tier: aimed at, predicted, reached, and why these differ where they do."""
    return [f"{name}: {aim(tier)}" for name, tier in side.tiers.items()]


def aim(tier: TierSummary) -> str:
    """Of one tier. Targets in ratio or bits are solved on calibration text, those in KL or ΔPPL on held-out windows."""
    quantity, _, number = tier.target.partition("=")
    value, m = float(number), _figures(tier)
    if quantity == "error":
        return _promise_aim(tier, value)
    if quantity in QUANTITIES:
        return _loss_aim(tier, *QUANTITIES[quantity], value)
    wanted = value if quantity == "ratio" else 16 / value
    said = f"aimed at {wanted:.1f}:1, predicted {tier.predicted_ratio:.1f}"
    if "payload_ratio" not in m:
        return said + "."
    said += f", measured {m['payload_ratio']:.1f}"
    if abs(m["payload_ratio"] / wanted - 1) <= NEAR:
        return said + "."
    if abs(tier.predicted_ratio / wanted - 1) > NEAR:
        return said + ": ranks and bits are whole numbers, and no allocation comes closer."
    more = "more" if m["payload_ratio"] < wanted else "fewer"
    return said + f": the rate is set on the calibration text, and the held-out text takes {more} bytes."


def _promise_aim(tier: TierSummary, value: float) -> str:
    """Of a tier whose target no text is to exceed."""
    kinds = len({p.text for p in tier.errors})
    reached = _figures(tier).get("kl_nats")
    said = f"no text is to cost more than KL {value:g}; the error that keeps it was measured on {kinds} kinds of text"
    return said + ("." if reached is None else f". Held-out text: KL {shown('kl_nats', reached)}.")


def _loss_aim(tier: TierSummary, name: str, field: str, value: float) -> str:
    reached = (tier.measured or {}).get(field)
    said = f"aimed at {name} {value:g} at most"
    if tier.searched is not None:
        said += f", {tier.searched:.4f} on the windows that were searched"
    if reached is None:
        return said + "."
    said += f", {reached:.4f} on those reported"
    if tier.searched is not None and tier.searched < 0.9 * value:
        return said + ": no ratio that was tried came closer from below."
    if abs(reached / value - 1) > 0.1:
        return said + ": they are other text. More windows (--held-out 8) bring the two closer."
    return said + "."


def outcome_text(side: ProfileSidecar) -> Text:
    """The sentence, then the aims."""
    return Text.assemble((headline(side), "bold"), "\n", ("\n".join(aims(side)), "dim"))


def next_text(stem: Path, *, tiers: Collection[str], shown: bool = False, serving: Collection[str] = ()) -> Text:
    """What to type next; tiers: the profile's; shown: `sq show` has run; serving: the tiers of a profile for serving engines."""
    sq = program()
    lines = [] if shown else [f"{sq} show {stem}"]
    if "cold" in serving:
        lines += [f"{sq} serve-check MODEL --profile {stem}"]
    if "hot" in serving:
        lines += [f"SPECTRALQUANT_HOT_PROFILE={stem} python -m vllm.entrypoints.openai.api_server --model MODEL"]
    if not serving:
        lines += [f"{sq} pack --profile {stem} --file FILE.txt --out FILE.sqkv"] if "cold" in tiers else []
        lines += [
            f"{sq} compare turboquant h2o --quick --profile {stem}",
            f"{sq} generate --profile {stem} --file FILE.txt",
        ]
    return Text("\nNext:\n" + "\n".join(f"  {line}" for line in lines))


def program() -> str:
    """This program as it has to be typed here: `sq`, or its path where the shell would not find it."""
    called = Path(sys.argv[0])
    if called.name in ("sq", "spectralquant") and shutil.which(called.name) is None:
        return os.path.relpath(called)
    return "sq"
