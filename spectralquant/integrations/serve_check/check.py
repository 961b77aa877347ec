"""`serve_check`: how a tier serves a model on this machine, against recomputing and against keeping every bit."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spectralquant.errors import InputError
from spectralquant.files import read_json
from spectralquant.integrations.chunks import LOSSLESS
from spectralquant.integrations.serve_check.child import numbers_file
from spectralquant.integrations.serve_check.compare import compare
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import require_vllm, run
from spectralquant.integrations.serve_check.spares import Spares
from spectralquant.integrations.serve_check.ways import (
    FILES,
    MEMORY,
    RECOMPUTE,
    SPECTRAL,
    VLLM_CHUNK,
    codec_of,
    ours,
    vllm_own,
)
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.serving import ServingRow

KL_LIMIT = 0.02
HALF_A_PAGE = 8  # tokens; chunks are whole pages of 16
ROOMY = 1 << 38
SUMMARY = (
    "hit_share",
    "kl_nats",
    "bytes_ratio",
    "restore_over_recompute_8k",
    "restore_over_recompute_32k",
    "decode_over_recompute",
    "hot_capacity_over_bf16",
    "hot_tokens_per_s_over_fp8_b8_32k",
)
Report = Callable[[str], None]
Keep = Callable[[Results], None]
FROM_FILES = " from files"
STAGES = ("read_after_s", "decoded_after_s", "copied_after_s", "taken_after_s")
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class ServeCheck:
    """What is served and how it is judged. name: what results call the model, whose folder is `model`.

    codec: a profile for serving, or `lossless` alone. prompts: with one shared prefix of `prefix` tokens and `own` tokens each
    of their own; `new` tokens are generated. long: lengths of long prompts that are restored, `long_prompts` of each.
    trace: requests over `trace_prefixes` prefixes of `prefix` tokens; the disk budget holds `trace_share` of the prefixes as
    the engine holds them. own_tiers: measure vLLM's own too, which need a GPU. cpu_bytes: of vLLM's tier in CPU memory before
    ours; memory_bytes: of it before vLLM's files. rounds: how often long prompts are restored on a GPU, each time with nothing of
    them in CPU memory. one_process: store and restore in one. batch: sequences decoded together, with and without the tier (0: not measured). lossless: measure the
    tier that keeps every bit beside a profile's. trace_cpu_bytes: of vLLM's tier in CPU memory during the trace (0: as ever).
    """

    model: str
    codec: str = LOSSLESS
    device: str = "cpu"
    prompts: int = 20
    prefix: int = 1000
    own: int = 24
    new: int = 8
    long: tuple[int, ...] = ()
    long_prompts: int = 3
    rounds: int = 1
    trace: int = 40
    trace_prefixes: int = 12
    trace_share: float = 0.25
    batch: int = 0
    batch_tokens: int = 128
    texts: bool = True
    own_tiers: bool = False
    cpu_bytes: int = 0
    memory_bytes: int = 0
    one_process: bool = False
    lossless: bool = True
    trace_cpu_bytes: int = 0
    kl_limit: float = KL_LIMIT
    engine: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    text: str = "builtin:pydoc"


def serve_check(
    check: ServeCheck,
    report: Report,
    folder: Path | None = None,
    *,
    keep: Keep | None = None,
    spares: Spares | None = None,
) -> Results:
    """Run every way and compare.

    keep: gets what is measured so far after every way; ways to come are faults there, and in its settings `unfinished`. spares:
    processes for the engines, as many as `engines` says; on a GPU they are made where none are given.

    Raises:
        InputError: vLLM is missing, or an engine did not do what it was told; the message shows its last lines.
    """
    require_vllm()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="sq-serve-check-") as made:
            return serve_check(check, report, Path(made), keep=keep, spares=spares)
    if spares is not None or check.device == "cpu":
        return _Runs(check, report, folder, spares).results(keep)
    config = read_json(Path(check.model) / "config.json", "The model's configuration")
    with Spares(folder, engines(check), config.get("architectures") or ()) as own:
        return _Runs(check, report, folder, own).results(keep)


def engines(check: ServeCheck) -> int:
    """How many engines a check starts, one after the other."""
    ours = 1 + (check.codec != LOSSLESS and check.lossless)
    return 1 + ours * ((1 if check.one_process else 2) + bool(check.trace)) + check.own_tiers


def own_tokens(prefix: int, own: int) -> int:
    """Tokens of a prompt's own, a few more than `own` where whole pages would hold the prompt.

    Restored whole, its last token alone is computed, as while decoding: by other sums, so that texts differ though every bit of
    the cache is right.
    """
    return own + (HALF_A_PAGE if (prefix + own) % (2 * HALF_A_PAGE) == 0 else 0)


class _Runs:
    def __init__(self, check: ServeCheck, report: Report, folder: Path, spares: Spares | None) -> None:
        self.check, self.report, self.folder, self.spares = check, report, folder, spares
        self.shared = Prompts("shared", check.prompts, check.prefix, own_tokens(check.prefix, check.own))
        self.base = self._run(RECOMPUTE, None, [*self._measured(), *self._batch(), *self._trace()])
        self.faults: list[str] = []

    def results(self, keep: Keep | None) -> Results:
        check = self.check
        ways = [way for way in (LOSSLESS, SPECTRAL) if check.codec != LOSSLESS or way == LOSSLESS]
        ways = ways if check.lossless else ways[-1:]
        plan: list[tuple[tuple[str, ...], Callable[[], list[ServingRow]]]] = [
            ((way,), lambda way=way: [self._ours(way)]) for way in ways
        ]
        if check.own_tiers:
            plan.append(((MEMORY, FILES), self._vllm))
        rows = [self._recomputed()]
        for at, (names, measure) in enumerate(plan):
            if keep is not None:
                keep(self._file(rows, ways, [name for later, _ in plan[at:] for name in later]))
            rows += self._or_failed(names, measure)
        return self._file(rows, ways, [])

    def _file(self, rows: list[ServingRow], ways: list[str], unfinished: list[str]) -> Results:
        check = self.check
        last = next((row for row in rows if row.way == ways[-1]), ServingRow(way=ways[-1]))
        summary: dict[str, float | None] = dict.fromkeys(SUMMARY)
        summary |= {"hit_share": last.hit_share, "kl_nats": last.kl_nats, "bytes_ratio": last.bytes_ratio}
        summary["decode_over_recompute"] = _faster(last, rows[0])
        for length, name in ((8192, "8k"), (32768, "32k")):
            summary[f"restore_over_recompute_{name}"] = last.long_over_recompute.get(str(length))
        named = {
            "model": check.name or Path(check.model).name,
            "codec": Path(check.codec).name,
            "long": list(check.long),
            **({UNFINISHED: unfinished} if unfinished else {}),
        }
        settings = {name: x for name, x in asdict(check).items() if name != "name"} | named
        return results_file(
            "serving",
            rows,
            provenance(**{k: v for k, v in self.base["facts"].items() if k not in ("start_s", "pages")}),
            summary=summary,
            settings=settings,
            engine=self.base["facts"],
            faults=[*self.faults, *(f"{way}: cut off before it was measured" for way in unfinished)],
        )

    def _or_failed(self, ways: Sequence[str], measure: Callable[[], list[ServingRow]]) -> list[ServingRow]:
        """Ways whose engine ended early are faults of their own, and the others are measured."""
        try:
            return measure()
        except InputError as error:
            self.faults += [f"{way}: {error}" for way in ways]
            return [ServingRow(way=way, note=str(error)) for way in ways]

    def _run(self, name: str, transfer: dict[str, Any] | None, steps: list[Step]) -> dict[str, Any]:
        self.report(f"{name}: starting vLLM")
        order = Order(self.check.model, self.check.engine, transfer, steps, self.check.text)
        return run(order, self.folder, name, starter=None if self.spares is None else self.spares.take())

    def _long(self) -> dict[str, Prompts]:
        """Prompts a little shorter than the length, so that the first token fits."""
        count = self.check.long_prompts
        return {str(n): Prompts("distinct", count, n - 2 * self.check.own, part=1) for n in self.check.long}

    def _measured(self, after: str = "", cold: bool = False) -> list[Step]:
        """after: what the names of the steps end with. cold: long prompts come from the tier behind CPU memory, every time."""
        rounds = self.check.rounds
        steps = [Step("times", f"times{after}", self.shared)]
        if self.check.texts:
            steps.append(Step("texts", f"texts{after}", self.shared, self.check.new))
        return steps + [
            Step("times", f"long {n}{after}", prompts, rounds=rounds, cold=cold) for n, prompts in self._long().items()
        ]

    def _fills(self) -> list[Step]:
        steps = [Step("fill", "fill", self.shared)]
        steps += [Step("fill", f"fill {n}", prompts) for n, prompts in self._long().items()]
        return [*steps, Step("settle", "settle")]

    def _batch(self) -> list[Step]:
        if not self.check.batch:
            return []
        prompts = Prompts("distinct", self.check.batch, 512, part=40)
        return [Step("batch", "batch", prompts, self.check.batch_tokens)]

    def _trace(self) -> list[Step]:
        c = self.check
        if not c.trace:
            return []
        return [Step("trace", "trace", Prompts("trace", c.trace, c.prefix, c.own, prefixes=c.trace_prefixes))]

    def _recomputed(self) -> ServingRow:
        row = ServingRow(way=RECOMPUTE, prompts=self.check.prompts, prefix_tokens=self.check.prefix)
        return row.updated(**self._times(self.base), **self._rates(self.base), **self._traced(self.base, None))

    def _ours(self, way: str) -> ServingRow:
        check, store = self.check, self.folder / f"store-{way}"
        codec = codec_of(way, check.codec)
        transfer = ours(store, ROOMY, codec, check.device if way == SPECTRAL else "cpu", check.cpu_bytes)
        measured = [*self._measured(cold=check.device == "cuda"), *self._batch()]
        if check.one_process:
            filled = restored = self._run(f"{way}-restore", transfer, [*self._fills(), *measured])
            stored = filled["steps"]["settle"]["tally"]
            end = restored["steps"][self._measured()[-1].name]["tally"]
            tally = {name: end[name] - stored[name] for name in stored}
        else:
            filled = self._run(f"{way}-fill", transfer, self._fills())
            restored = self._run(f"{way}-restore", transfer, measured)
            stored, tally = filled["tally"], restored["steps"][self._measured()[-1].name]["tally"]
        row = ServingRow(
            way=way,
            codec=Path(codec).name,
            prompts=check.prompts,
            prefix_tokens=check.prefix,
            hit_share=tally["hits"] / tally["lookups"] if tally["lookups"] else None,
            cached_tokens_share=_cached_share(restored["steps"]["times"]),
            bytes_ratio=stored["raw_bytes"] / stored["stored_bytes"],
            stored_bytes=stored["stored_bytes"],
            chunk_bytes=stored["raw_bytes"],
            encode_s=stored["encode_s"],
            decode_s=tally["decode_s"],
        )
        row = row.updated(**self._times(restored), **self._against(f"{way}-restore", restored), **self._rates(restored))
        row = row.updated(long_stages_s=self._stages(restored))
        row = row.updated(**self._ours_traced(way, codec, stored))
        self._judge(row)
        return row

    def _vllm(self) -> list[ServingRow]:
        """Both tiers of vLLM's own by one engine: what CPU memory holds is restored first, then what is in files alone."""
        check, folder = self.check, self.folder / FILES
        from_files = self._measured(FROM_FILES, cold=True)
        steps = [*self._fills(), *self._measured(), Step("forget", "forget"), *from_files, *self._batch()]
        done = self._run("vllm-own", vllm_own(folder, check.memory_bytes), steps)
        rows = []
        for way, after in ((MEMORY, ""), (FILES, FROM_FILES)):
            row = ServingRow(way=way, prompts=check.prompts, prefix_tokens=check.prefix)
            row = row.updated(
                cached_tokens_share=_cached_share(done["steps"][f"times{after}"]), **self._times(done, after)
            )
            rows.append(row.updated(**self._against("vllm-own", done, after), **self._rates(done)))
        size = sum(p.stat().st_size for p in folder.rglob("*.bin") if p.is_file())
        return [rows[0], rows[1].updated(stored_bytes=size)]

    def _times(self, report: dict[str, Any], after: str = "") -> dict[str, Any]:
        samples = report["steps"][f"times{after}"]["seconds"]
        long = {n: report["steps"][f"long {n}{after}"]["seconds"] for n in self._long()}
        fields: dict[str, Any] = {
            "first_token_s": statistics.median(samples),
            "first_token_samples_s": samples,
            "long_first_token_s": {n: statistics.median(s) for n, s in long.items()},
            "long_samples_s": long,
            "engine_start_s": report["facts"]["start_s"],
        }
        if report is not self.base:
            fields["over_recompute"] = _over(samples, self.base["steps"]["times"]["seconds"])
            fields["long_over_recompute"] = {
                n: _over(s, self.base["steps"][f"long {n}"]["seconds"]) for n, s in long.items()
            }
        return fields

    def _stages(self, report: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Of each length, means over the requests that restored: seconds from the first lookup to the end of each stage."""
        tallies = {name: step.get("tally") for name, step in report["steps"].items()}
        before = dict(zip(tallies, [None, *tallies.values()], strict=False))
        out = {}
        for n in self._long():
            tally, old = tallies[f"long {n}"], before[f"long {n}"]
            if tally and old and tally["restores"] > old["restores"]:
                count = tally["restores"] - old["restores"]
                out[n] = {stage: (tally[stage] - old[stage]) / count for stage in STAGES}
        return out

    def _against(self, engine: str, report: dict[str, Any], after: str = "") -> dict[str, Any]:
        if not self.check.texts:
            return {}
        exact, other = self._numbers(RECOMPUTE, "texts"), self._numbers(engine, f"texts{after}")
        texts = [r["steps"][name]["tokens"] for r, name in ((self.base, "texts"), (report, f"texts{after}"))]
        return asdict(compare(exact, other, *texts))

    def _numbers(self, engine: str, step: str) -> np.ndarray:
        return np.load(numbers_file(self.folder / f"{engine}.report.json", step), mmap_mode="r")

    def _rates(self, report: dict[str, Any]) -> dict[str, Any]:
        rates = report["steps"].get("batch", {}).get("tokens_per_s")
        return {"decode_tokens_per_s": {str(self.check.batch): statistics.median(rates)}} if rates else {}

    def _ours_traced(self, way: str, codec: str, stored: dict[str, Any]) -> dict[str, Any]:
        if not self.check.trace:
            return {}
        chunk_bytes = stored["raw_bytes"] / stored["saves"]
        chunks = self.check.trace_prefixes * (self.check.prefix // VLLM_CHUNK)
        budget = int(self.check.trace_share * chunks * chunk_bytes)
        device = self.check.device if way == SPECTRAL else "cpu"
        memory = self.check.trace_cpu_bytes or self.check.cpu_bytes
        transfer = ours(self.folder / f"trace-{way}", budget, codec, device, memory)
        return self._traced(self._run(f"{way}-trace", transfer, self._trace()), budget)

    def _traced(self, report: dict[str, Any], budget: int | None) -> dict[str, Any]:
        if not self.check.trace:
            return {}
        step = report["steps"]["trace"]
        return {
            "trace_requests": self.check.trace,
            "trace_prefixes": self.check.trace_prefixes,
            "trace_budget": budget,
            "trace_hit_share": _cached_share(step),
            "trace_first_token_s": statistics.mean(step["seconds"]),
        }

    def _judge(self, row: ServingRow) -> None:
        if row.hit_share is not None and row.hit_share < 1:
            self.faults.append(f"{row.way}: {1 - row.hit_share:.1%} of the lookups of stored prefixes missed")
        if row.way == LOSSLESS and row.same_text is not None and row.same_text < 1:
            self.faults.append(f"{row.way}: {1 - row.same_text:.1%} of the texts differ, though every bit is kept")
        if row.kl_nats is not None and row.kl_nats > self.check.kl_limit:
            self.faults.append(f"{row.way}: KL {row.kl_nats:.4f} nats is above {self.check.kl_limit}")


def _faster(row: ServingRow, base: ServingRow) -> float | None:
    """Tokens a second of sequences decoded together, over those of the engine alone."""
    rates = [next(iter(r.decode_tokens_per_s.values()), None) for r in (row, base)]
    return None if rates[0] is None or rates[1] is None else rates[0] / rates[1]


def _over(samples: list[float], base: list[float]) -> float:
    return statistics.median(samples) / statistics.median(base)


def _cached_share(step: dict[str, Any]) -> float:
    """Tokens that were not computed by tokens of all prompts."""
    return sum(step["cached_tokens"]) / sum(step["prompt_tokens"])
