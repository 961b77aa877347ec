"""The table that the results page opens with: model × text × method at one KL, and what each costs; every figure with the file it is from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from research.readme.tools import is_there, load, table
from spectralquant.evaluation.match import matched
from spectralquant.methods.eviction.evictor import STREAMING
from sqcli.terminal.compare import bound_text

KL = 0.01
UNKNOWN = "?"
NOTHING = "–"
RATIO, GENERAL, FOREIGN, ENCODE, DECODE, FIRST, PROFILE = (
    "ratio",
    "general profile",
    "foreign profile",
    "encode GB/s",
    "decode GB/s",
    "next token",
    "profile MB",
)
COLUMNS = (RATIO, GENERAL, FOREIGN, PROFILE)
SPEEDS = (ENCODE, DECODE, FIRST)
OURS = "spectral"
OWN, ELSEWHERE = "own", "foreign"
METHODS = (OURS, "kvtc", "turboquant", "kivi", "h2o", "snapkv", "expected_attention", "streaming_llm", "scissorhands")
FORGET = ("h2o", "snapkv", "expected_attention", "streaming_llm", "scissorhands", "heavy_hitter")
FIXED = ("turboquant", "kivi", *FORGET)
COMPARISONS = {"compare-smollm2-wikitext2": "smollm2-135m", "compare-gemma3-wikitext2": "gemma3-270m"}
MODELS = tuple(COMPARISONS.values())
TEXTS = ("wikitext", "python", "french", "bible")
BUSY_BYTES = 2e9
"""What a card holds beyond this much of other processes is not their start alone."""

Key = tuple[str, str, str]
"""Model, text, method."""


@dataclass
class Facts:
    """Cells by model, text and method, and by column; the first file that has a figure gives it. notes: what each file is of."""

    cells: dict[Key, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def add(self, file: str, note: str, found: Iterable[tuple[Key, str, str]]) -> None:
        """Cells `(key, column, text)` of a file."""
        for key, column, text in found:
            row = self.cells.setdefault(key, {})
            if column not in row or (row[column].startswith(NOTHING) and not text.startswith(NOTHING)):
                self.notes.setdefault(file, note)
                mark = self._mark(file)
                row[column] = f"{text}<sup>{mark}</sup>" if mark else text

    def _mark(self, file: str) -> str:
        """A letter; none for the file that most figures are from, which comes first."""
        place = list(self.notes).index(file)
        return chr(ord("a") + place - 1) if place else ""

    def models(self) -> list[str]:
        """Models in their order."""
        return list(dict.fromkeys(key[0] for key in sorted(self.cells, key=_place)))

    def grid(self, model: str) -> list[list[str]]:
        """A row a text and method of a model: texts in their order, ours first. Methods that are good enough at no budget
        share a row.
        """
        out: list[list[str]] = []
        for key in sorted((key for key in self.cells if key[0] == model), key=_place):
            _, text, method = key
            row = {**_without_meaning(method), **self.cells[key]}
            if row.get(RATIO, "").startswith(NOTHING):
                row.setdefault(PROFILE, NOTHING)
            name = f"**{method}**" if method == OURS else method
            line = [text, name, *(row.get(column, UNKNOWN).replace(" ", "&nbsp;") for column in COLUMNS)]
            if out and _nothing(line) and [line[0], *line[2:]] == [out[-1][0], *out[-1][2:]]:
                out[-1][1] += f", {name}"
            else:
                out.append(line)
        return out

    def costs(self) -> list[list[str]]:
        """A row a model and method that decodes: what coding costs."""
        keys = [key for key in sorted(self.cells, key=_place) if key[1] == TEXTS[0] and key[2] not in FORGET]
        return [
            [
                model,
                f"**{method}**" if method == OURS else method,
                *(self.cells[model, text, method].get(column, UNKNOWN).replace(" ", "&nbsp;") for column in SPEEDS),
            ]
            for model, text, method in keys
        ]

    def legend(self) -> str:
        """Which file a letter stands for, and what it is of."""
        return (
            "; ".join(f"{self._mark(file) or 'no letter:'} `{file}.json`: {note}" for file, note in self.notes.items())
            + "."
        )


def sceptic() -> str:
    """Model × text × method at equal quality, and what it costs in time and bytes."""
    facts = Facts()
    if is_there("headline"):
        result = load("headline")
        facts.add("headline", _headline_note(result), of_headline(result))
    for name, model in COMPARISONS.items():
        if is_there(name):
            result = load(name)
            facts.add(name, _comparison_note(result), of_comparison(result, model))
    if is_there("cold-smollm2-wikitext2"):
        facts.add("cold-smollm2-wikitext2", "profile bytes", of_curve(load("cold-smollm2-wikitext2"), facts))
    if is_there("quality"):
        facts.add("quality", "own profile at home", of_quality(load("quality")))
    tables = [table([f"{model} at KL {KL:g}", "method", *COLUMNS], facts.grid(model)) for model in facts.models()]
    read = (
        "Ratios lie between two measured budgets, one better and one worse than that KL (log–log). "
        f"`{NOTHING}`: no budget that was measured is that good (of streaming_llm and scissorhands at most half of the tokens kept), or the method has no such thing. `≥`: its smallest code is better than that KL. Spectral's own "
        "profile is calibrated on other windows of the same text; codecs are read "
        "streaming, snapkv and expected_attention by prompt, of h2o the better of both. A codec's ratio is of what it codes, an evicting method's of "
        "its whole cache: [below](#every-rival-on-the-same-tokens) both stand beside each other. The general profile is a third each of prose, code and Python's manual, "
        "so Python is at home in it."
    )
    costs = (
        "What coding costs, on WikiText, each method at the budget nearest to that KL: a window's blocks one by one, in GB/s of float16 keys and "
        "values, and the time to the next token after all of them are decoded. Other texts were not timed."
    )
    parts = [*tables, read, costs, table(["model", "method", *SPEEDS], facts.costs()), facts.legend()]
    if any(UNKNOWN in line for lines in (*map(facts.grid, facts.models()), facts.costs()) for line in lines):
        parts.append(f"`{UNKNOWN}`: not measured, or (spectral) every budget that was fitted is coarser.")
    return "\n\n".join([*parts, *real_size()])


def texts_and_profiles() -> list[list[str]]:
    """Rows of the short table: the range over texts of each model with a profile of its own, and of another text."""
    ours = [
        r for r in load("headline").rows if r.method == OURS and r.mode == STREAMING and r.payload_ratio is not None
    ]
    rows = []
    for start, name in ((OWN, "a profile of its own"), (ELSEWHERE, "one of another text")):
        said = []
        for model in MODELS:
            ratios = [r.payload_ratio for r in ours if r.model.endswith(model) and r.profile.startswith(start)]
            said.append(f"{min(ratios):.0f} to {max(ratios):.0f} ({model})")
        steps = sorted({p["steps"] for p in load("headline")["profiles"]})
        many = f"{steps[0]} to {steps[-1]} calibration steps"
        rows.append([f"payload ratio, four texts, each with {name}", f"**{said[0]}**", f"KL {KL:g}; {said[1]}; {many}"])
    return rows


def of_headline(result: Any) -> Iterator[tuple[Key, str, str]]:
    """Cells of `sq study headline`."""
    for model, text in dict.fromkeys((r.model, r.text) for r in result.rows):
        rows = [r for r in result.rows if (r.model, r.text) == (model, text)]
        name = model.removeprefix("builtin:")
        for method in dict.fromkeys(r.method.partition(" ")[0] for r in rows):
            some = [r for r in rows if r.method.partition(" ")[0] == method]
            key = (name, text, method)
            if method != OURS:
                best = _best(some)
                yield key, RATIO, _ratio(best)
                if best.profile_bytes:
                    yield key, PROFILE, f"{best.profile_bytes / 1e6:.0f}"
                continue
            streamed = [r for r in some if r.mode != "prompt"]
            for column, kind in ((RATIO, "own"), (GENERAL, "general"), (FOREIGN, "foreign")):
                best = _best([r for r in streamed if (r.profile or "").startswith(kind)])
                if (
                    best is not None and best.payload_ratio is not None
                ):  # coarse budgets alone say nothing of finer ones
                    yield key, column, _ratio(best)
                if column == RATIO and best is not None and best.payload_ratio is not None and best.profile_bytes:
                    yield key, PROFILE, f"{best.profile_bytes / 1e6:.0f}"
    ratios = {(r.model, r.method): r for r in result.rows if r.text == TEXTS[0] and (r.profile or "own") == "own"}
    for model, method in dict.fromkeys((r.model, r.method) for r in result.speed):
        rows = [r for r in result.speed if (r.model, r.method) == (model, method)]
        wanted = ratios.get((model, method))
        near = min(rows, key=lambda r: _distance(r.options.get("target_ratio"), wanted))
        key = (model.removeprefix("builtin:"), TEXTS[0], method)
        yield key, ENCODE, f"{near.encode_gb_s:.2f}"
        yield key, DECODE, f"{near.decode_gb_s:.2f}"
        yield key, FIRST, f"{1000 * near.first_token_s:.0f} ms"


def of_comparison(result: Any, model: str) -> Iterator[tuple[Key, str, str]]:
    """Cells of `sq compare` on WikiText: ratios at equal KL, and speeds at the budget nearest to that KL."""
    good = [r for r in result.rows if not r.failed]
    every = [r for r in matched(good, KL) if r.method not in ("spectral hot", "spectral warm")]
    for method in METHODS:
        some = [r for r in every if r.method.partition(" ")[0] == method and (method != OURS or r.mode != "prompt")]
        if not some:
            continue
        key = (model, TEXTS[0], method)
        yield key, RATIO, _ratio(_best(some))
        points = [
            r for r in good if r.method == method and r.options.get("tier", "cold") == "cold" and r.mode != "prompt"
        ]
        near = min(points, key=lambda r: abs(r.kl_nats - KL), default=None)
        if near is None or method in FORGET:
            continue
        size = near.payload_ratio * near.coded_bytes / near.coded_tokens * 1000 / 1e9
        yield key, ENCODE, f"{size / near.encode_s:.2f}"
        yield key, DECODE, f"{size / near.decode_s:.2f}"


def of_curve(result: Any, facts: Facts) -> Iterator[tuple[Key, str, str]]:
    """Bytes of the profile whose ratio is nearest to KL 0.01 on the cold tier's curve."""
    key = (MODELS[0], TEXTS[0], OURS)
    rows = [r for r in result.rows if r.method == OURS and r.context == 2048]
    near = min(rows, key=lambda r: abs(r.kl_nats - KL), default=None)
    if key in facts.cells and near is not None:
        target = next(k for k in result.profile if float(k) == float(near.options["target_ratio"]))
        yield key, PROFILE, f"{result.profile[target].bytes / 1e6:.0f}"


def of_quality(result: Any) -> Iterator[tuple[Key, str, str]]:
    """Ratios of own profiles at home, from the curve of each model; sliding layers as they hold tokens, as rivals' are counted."""
    for model in MODELS:
        name = f"ratio_at_kl_{KL:g}_{model.partition('-')[0]}"
        ratio = result.summary.get(f"{name}_as_held", result.summary.get(name))
        if ratio is not None:
            yield (model, TEXTS[0], OURS), RATIO, f"{ratio:.1f}"


def real_size() -> list[str]:
    """What coding costs at a real size on the named GPU."""
    if not is_there("cold-speed-h100"):
        return []
    result = load("cold-speed-h100")
    s = result.summary
    text = (
        f"Real size, `cold-speed-h100.json`, {result.provenance['device']}, 8,192 tokens of an 8B shape, blocks together: encode {s['encode_gb_s_8k']:.0f} GB/s, decode "
        f"{s['decode_gb_s_8k']:.0f} GB/s; first token from a packet on disk after {1000 * s['first_token_disk_s_8k']:.0f} ms, their prefill takes "
        f"{1000 * s['prefill_s_8k']:.0f} ms."
    )
    return [text]


def _headline_note(result: Any) -> str:
    first = result.rows[0]
    windows = sorted({r.n_windows for r in result.rows})
    many = f"{windows[0]} to {windows[-1]}" if len(windows) > 1 else str(windows[0])
    return f"{many} windows of {first.context:,} tokens a text{_speeds_note(result.speed)}"


def _speeds_note(rows: list[Any]) -> str:
    """On which device speeds were taken, and what else ran there."""
    if not rows:
        return ""
    held, loads = (
        [getattr(r, name) for r in rows if getattr(r, name) is not None] for name in ("other_bytes", "host_load")
    )
    beside = []
    if held and max(held) > BUSY_BYTES:
        beside.append(f"other runs held {max(held) / 1e9:.0f} GB of the card")
    if loads:
        beside.append(f"the load of the host's {rows[0].host_cores} cores was {max(loads):.0f}")
    return f", speeds on {rows[0].device}" + (f" while {' and '.join(beside)}" if beside else "")


def _comparison_note(result: Any) -> str:
    first = next(r for r in result.rows if not r.failed)
    return f"{first.n_windows} windows of {first.context:,} tokens, {result.provenance['device']}"


def _best(rows: Iterable[Any]) -> Any:
    return max(rows, key=lambda r: r.payload_ratio or 0, default=None)


def _ratio(row: Any) -> str:
    return NOTHING if row is None or row.payload_ratio is None else bound_text(row)


def _nothing(line: list[str]) -> bool:
    """Whether a row says of a method that no budget is good enough, and no more."""
    return line[2].startswith(NOTHING) and all(cell == NOTHING for cell in line[3:])


def _distance(target: float | None, wanted: Any) -> float:
    """How far a speed row's budget is from the ratio at the table's KL."""
    return (
        0.0 if target is None or wanted is None or wanted.payload_ratio is None else abs(target - wanted.payload_ratio)
    )


def _without_meaning(method: str) -> dict[str, str]:
    """What a method has not: a profile, or something to decode."""
    row = {} if method == OURS else {GENERAL: NOTHING, FOREIGN: NOTHING}
    row |= {PROFILE: NOTHING} if method in FIXED else {}
    return row | ({ENCODE: NOTHING, DECODE: NOTHING, FIRST: NOTHING} if method in FORGET else {})


def _place(key: Key) -> tuple[int, ...]:
    """The order of rows."""
    kinds = (MODELS, TEXTS, METHODS)
    return tuple(kind.index(x) if x in kind else len(kind) for kind, x in zip(kinds, key, strict=True))
