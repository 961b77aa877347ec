"""`RunReport`: what a cache did not compress though it was asked to, and why. Nothing goes uncompressed in silence.

A reason is warned of where it is certain (a dropped cache, a text scored in one pass), else when the run ends: when
`stats()` is asked for, or when the cache is dropped. Each reason is warned of once a cache.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

from spectralquant.errors import NotCompressedWarning
from spectralquant.geometry import BLOCK, SINKS


@dataclass(frozen=True)
class NotCompressed:
    """One reason. tokens: of every sequence, that stayed as they were or were read before they were compressed."""

    reason: str
    tokens: int
    message: str


@dataclass
class RunReport:
    """Counts of one cache's run; they outlive the cache, so that its end can be told of.

    compresses: whether the cache was asked to (any tier but exact). narrow: what is to be said of sliding layers that stay
    exact, all_narrow: they are all layers. passes: forward passes that called it; longest: most tokens of one. kept: it
    was packed, saved or copied, so that what it compressed has a use.
    """

    compresses: bool
    window: int
    compress_from: int
    narrow: str | None = None
    all_narrow: bool = False
    passes: int = 0
    longest: int = 0
    total: int = 0
    coded: int = 0
    kept: bool = False
    certain: dict[str, NotCompressed] = field(default_factory=dict)
    _elsewhere: dict[int, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def note_pass(self, new: int, total: int, coded: int) -> None:
        """A forward pass of `new` tokens ended; the cache holds `total` a sequence, `coded` of them in blocks."""
        self.passes += 1
        self.longest, self.total, self.coded = max(self.longest, new), total, coded

    def note_held(self, total: int, coded: int) -> None:
        """The cache was filled from a packet, a file or another cache."""
        self.total, self.coded, self.kept = total, coded, True

    def restart(self) -> None:
        """The cache was emptied: what follows is another run."""
        self.passes = self.longest = self.total = self.coded = 0
        self.kept = False
        self._elsewhere.clear()
        self.certain.clear()

    def dropped(self, why: str) -> None:
        """The cache was given to a run that goes on without it."""
        self._add("dropped", self.total, f"Nothing was compressed: {why}.", tell=True)

    def not_called(self, model: str) -> None:
        """A forward pass was given the cache and did not call it."""
        self._add(
            "not_called",
            self.total,
            f"Nothing was compressed: {model} was given this cache for a forward pass and stored nothing in it (gradient "
            "checkpointing in training mode does that).",
            tell=True,
        )

    def scored(self, tokens: int) -> None:
        """One pass gave logits of all positions of a text, computed from exact keys and values."""
        self._add(
            "single_pass",
            tokens,
            f"Logits of {tokens:,} tokens were computed in one forward pass, from exact keys and values: a cache "
            "compresses at the end of a pass, so these logits show no loss. To measure what compression costs, feed the "
            "text in pieces or use `sq compare`; if this was a prefill, logits_to_keep=1 says so.",
            tell=True,
        )

    def other_tier(self, start: int, tokens: int, wanted: str, taken: str, why: str) -> None:
        """The block that begins at token `start` went to a tier above the one that was asked for."""
        self._elsewhere[start] = tokens
        count = sum(self._elsewhere.values())
        message = f"{count:,} tokens are held in tier {taken}, not {wanted}: {why}."
        self._add("other_tier", count, message, tell=True)

    def reasons(self) -> list[NotCompressed]:
        """Every reason so far, those that only the end of a run shows included."""
        reasons = dict(self.certain)
        if self.narrow is not None and self.compresses and self.passes and not self.all_narrow:
            reasons["narrow_windows"] = NotCompressed("narrow_windows", self.total, self.narrow)
        end = self._end() if self.compresses else None
        if end is not None:
            reasons.setdefault(end.reason, end)
        return list(reasons.values())

    def end(self) -> None:
        """The run is over, as far as is known: warn of what has not been warned of."""
        for each in self.reasons():
            partly = each.reason == "narrow_windows" and not self.all_narrow
            if each.reason not in ("never_used", "below_compress_from", "unread") and not partly:
                self._tell(each)

    def _end(self) -> NotCompressed | None:
        if self.all_narrow and self.passes:
            return NotCompressed("narrow_windows", self.total, f"Nothing was compressed: {self.narrow}")
        if self.coded:
            if self.passes == 1 and not self.kept:
                text = "Everything was computed from exact keys and values so far: no pass has read compressed ones."
                return NotCompressed("unread", self.coded, text)
            return None
        if not self.passes:
            return None if self.total else NotCompressed("never_used", 0, "No forward pass has called this cache.")
        if self.total < self.compress_from:
            text = f"Nothing was compressed: sequences of fewer than {self.compress_from:,} tokens are left alone."
            return NotCompressed("below_compress_from", self.total, text)
        least = self.window + BLOCK
        text = (
            f"Nothing was compressed: the sequence stayed within the {SINKS} first and the {self.window:,} to "
            f"{least - 1:,} newest tokens, which a cache keeps exact. Compression begins at {least:,} tokens."
        )
        return NotCompressed("below_window", self.total, text)

    def _add(self, reason: str, tokens: int, message: str, *, tell: bool) -> None:
        if not self.compresses:
            return
        self.certain[reason] = NotCompressed(reason, tokens, message)
        if tell:
            self._tell(self.certain[reason])

    def _tell(self, each: NotCompressed) -> None:
        if each.reason not in self._told:
            self._told.add(each.reason)
            warnings.warn(each.message, NotCompressedWarning, stacklevel=2)
