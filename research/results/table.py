"""Every results file: the one command that writes it, what it needs, and how far a second run may be from the stored one.

A long entry has parts, each a file of its own, which processes on several GPUs make side by side; its command puts them together.

Placeholders: {out} the file, {part} a part's file, {demo}, {wiki} and {gemma} profiles that other commands of this table make, {text} WikiText-2 raw
test, {manual} Python's own manual as one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

EVERY = 0


@dataclass(frozen=True)
class Part:
    """name: its file is ENTRY-part-NAME.json. gpus: how many it takes; `EVERY` that there is. minutes: about, on an H100.
    shares: others may use its GPU meanwhile, since its figures are no times.
    """

    name: str
    command: str
    minutes: int
    gpus: int = 1
    shares: bool = False


@dataclass(frozen=True)
class Entry:
    """name: of the file, without `.json`. needs: cpu, gpu, serving (vLLM's CPU build,
    `make test-serving`'s environment), or serving-gpu (vLLM on a GPU). minutes: about, on two cores or one H100. after: files that
    this one reads, or whose command makes a profile that it reads. before: commands that come first, a profile's or those that add to
    the same file. parts: come next, in any order. only: where code that matters for the figures lies, if not everywhere that the
    command imports from. borrows: figures of the summary that another file measures: `(figure, (file, its figure))`.
    """

    name: str
    command: str
    needs: str
    minutes: int
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    borrows: tuple[tuple[str, tuple[str, str]], ...] = ()

    @property
    def shares(self) -> bool:
        """Whether others may use its GPU meanwhile: its figures are qualities, and its times are not quoted as a GPU's own."""
        return self.name.startswith(QUALITY)


QUALITY = (
    *("cold-smollm2-", "cold-second-", "tiers-", "domains-", "quality", "compare-", "tasks-", "turboquant-", "hot-"),
    *("index-", "serving-codec"),
)
"""Beginnings of names."""
PROFILES = ("demo", "wiki", "gemma")
GEMMA = "--model builtin:gemma3-270m"
TEXT = "--data file:{text}"
PROFILE = "sq profile --context 32768 --batch 1,8"
OTHERS = (
    "h2o+spectral:keep=0.5 h2o+spectral:keep=0.2 h2o+spectral:keep=0.5,step_scale=2.0 hf_quantized "
    "hf_quantized:backend=hqq,bits=4 hf_quantized:backend=hqq,bits=3 hf_quantized:backend=hqq,bits=2"
)
COMPARE = "--profile {wiki} --data file:{text} --dtype float32 --json {out}"
EVICTING = "h2o snapkv expected_attention scissorhands streaming_llm"
TASKS = (
    "sq compare spectral:tier=cold kvtc:ratio=16 turboquant:bits=3 h2o snapkv expected_attention --windows 2 --needle 0"
)
KERNELS = (
    "kernels/sqkernels/",
    "spectralquant/bench/",
    "spectralquant/codec/hot/",
    "research/kernels.py",
    "research/prediction.py",
)
GRAPHED = (
    "kernels/sqkernels/",
    "spectralquant/bench/",
    "spectralquant/cache/read/",
    "spectralquant/calibration/fixed/",
    "spectralquant/codec/hot/bands.py",
    "spectralquant/codec/hot/codec.py",
    "spectralquant/codec/hot/linear.py",
    "spectralquant/graphed/",
    "spectralquant/hooks/",
    "spectralquant/models/shapes.py",
    "research/generate/",
)
DEMO, WIKI = ("calibrate-smollm2-cpu",), ("calibrate-smollm2-h100",)
GEMMA_WIKI = ("calibrate-gemma3-h100",)
HOT = "sq calibrate {model} {text} --steps 60 --window 2048 --tier hot,warm --target hot:ratio={ratio} --hot-bits {bits} --dtype float32"
RIVALS = "kivi:bits=4 kivi:bits=3 kivi:bits=4,group=64 --needle 0 --context 2048 --windows 6"
SERVING_PROFILE = (
    "sq calibrate --for serving --steps 24 --window 1024 --target ratio=30 --held-out 2 --held-out-window 1024 "
    "--out {out}.serving/profile"
)
GPU_HOT_PROFILE = (
    "sq calibrate --for serving --device cuda --tier hot --target ratio=4 --hot-bits even --steps 60 --window 1024 --held-out 2 "
    "--held-out-window 1024 --out {out}.serving/hot"
)


def hot_entry(name: str, model: str, bits: str, ratio: str) -> Entry:
    """The hot tier at a ratio beside KIVI, by a profile of its own."""
    made = HOT.format(model=model, text=TEXT, ratio=ratio, bits=bits) + " --out {out}.hot/profile"
    command = f"sq compare {RIVALS} {model} --profile {{out}}.hot/profile {TEXT} --dtype float32 --json {{out}}"
    return Entry(f"hot-{name}-{bits}-{ratio}", command, "gpu", 2, before=(made,))


def index_entry(name: str, model: str) -> Entry:
    """What an index costs, by a profile of its own."""
    made = HOT.format(model=model, text=TEXT, ratio=4, bits="free") + " --out {out}.hot/profile"
    command = f"sq study index {model} --profile {{out}}.hot/profile {TEXT} --window 2048 --windows 3 --dtype float32 --out {{out}}"
    return Entry(f"index-{name}-wikitext2", command, "gpu", 4, before=(made,))


LONG_TEXT = (
    "--steps 100 --data builtin:code=600 --data builtin:stdlib=298 --data file:{text}=75 --data builtin:pydoc=27"
)
BUILTIN = {"smollm2": "--model builtin:smollm2-135m", "gemma3": GEMMA}
TABLE = (
    Entry("architectures", "sq study architectures --out {out}", "cpu", 4),
    Entry("gate-simulation", "sq study gate --out {out}", "cpu", 1, only=("spectralquant/gate/",)),
    Entry("calibrate-smollm2-cpu", "sq calibrate --tier all --out {demo} --json {out}", "cpu", 9),
    Entry("cache-smollm2-cpu", f"sq study cache --profile {{demo}} {TEXT} --out {{out}}", "cpu", 8, DEMO),
    Entry("packet-smollm2-cpu", "sq study packet --profile {demo} --out {out}", "cpu", 2, DEMO),
    Entry(
        "generate-smollm2-cpu",
        "sq generate --profile {demo} --tier hot --budget 64MB --file {manual} --json {out}",
        "cpu",
        4,
        DEMO,
    ),
    Entry(
        "cold-costs-smollm2",
        "python -m research.cold_speed.costs {demo} file:{text} {out} --windows 2",
        "cpu",
        8,
        DEMO,
    ),
    Entry(
        "cold-speed-cpu",
        "sq study cold-speed --device cpu --profile {demo} --data builtin:pydoc --part cpu --out {out}",
        "cpu",
        2,
        DEMO,
    ),
    Entry(
        "quality-cpu",
        f"sq study quality --device cpu --window 512 --profile {{demo}} {TEXT} --part general --part texts --out {{out}}",
        "cpu",
        10,
        DEMO,
    ),
    Entry("durations", "python -m research.durations --out {out}", "cpu", 25),
    Entry("prediction-h100", "python -m research.prediction --out {out}", "cpu", 1, only=KERNELS),
    Entry(
        "calibrate-smollm2-h100",
        f"sq calibrate --tier all --steps 80 --window 2048 {TEXT} --out {{wiki}} --json {{out}}",
        "gpu",
        2,
    ),
    Entry(
        "calibrate-gemma3-h100",
        f"sq calibrate {GEMMA} --tier all --steps 80 --window 2048 {TEXT} --out {{gemma}} --json {{out}}",
        "gpu",
        3,
    ),
    Entry("cold-smollm2-wikitext2", f"sq study cold {TEXT} --out {{out}}", "gpu", 8),
    Entry("tiers-smollm2-wikitext2", f"sq study tiers {TEXT} --out {{out}}", "gpu", 4),
    Entry("domains-smollm2", f"sq study domains {TEXT} --steps 36 --window 768 --windows 24 --out {{out}}", "gpu", 4),
    Entry("cold-second-model", "sq study second-model --data builtin:stdlib --out {out}", "gpu", 4),
    Entry(
        "headline",
        f"sq study headline {TEXT} --steps 32 --windows 8 --out {{out}}",
        "gpu",
        25,
        before=(f"sq study headline {GEMMA} {TEXT} --steps 32 --windows 8 --out {{out}}",),
    ),
    Entry(
        "quality",
        f"sq study quality --steps 160 {TEXT} --out {{out}}",
        "gpu",
        20,
        before=(f"sq study quality {GEMMA} --steps 160 {TEXT} --part home --out {{out}}",),
    ),
    Entry("compare-smollm2-wikitext2", f"sq compare all --needle 10 --match kl=0.01 {COMPARE}", "gpu", 20, WIKI),
    Entry(
        "compare-smollm2-8192",
        f"sq compare turboquant {EVICTING} --context 8192 --windows 2 --needle 0 --match kl=0.01 " + COMPARE,
        "gpu",
        9,
        WIKI,
    ),
    Entry(
        "compare-gemma3-wikitext2",
        f"sq compare kvtc turboquant kivi {EVICTING} {GEMMA} --windows 8 --needle 0 --match kl=0.01 "
        + COMPARE.replace("{wiki}", "{gemma}"),
        "gpu",
        8,
        GEMMA_WIKI,
    ),
    Entry(
        "tasks-smollm2-2048", f"{TASKS} --tasks all --task-context 512,2048 --task-trials 8 {COMPARE}", "gpu", 6, WIKI
    ),
    Entry(
        "tasks-gemma3-8192",
        f"{TASKS} {GEMMA} --tasks needle,needles,copying,turns --task-context 2048,8192 --task-trials 4 "
        + COMPARE.replace("{wiki}", "{gemma}"),
        "gpu",
        14,
        GEMMA_WIKI,
    ),
    Entry("turboquant-outliers", "python -m research.rivals.outliers --data {text} --out {out}", "gpu", 2),
    Entry("compare-smollm2-wikitext2-others", f"sq compare {OTHERS} --needle 10 {COMPARE}", "gpu", 10, WIKI),
    *(index_entry(name, model) for name, model in BUILTIN.items()),
    *(
        hot_entry(name, model, bits, ratio)
        for name, model in BUILTIN.items()
        for bits, ratio in (("free", "4"), ("free", "3.14"), ("even", "4"))
    ),
    Entry(
        "generate-h100",
        "python -m research.generate.with_index {out} index-smollm2-wikitext2.json",
        "gpu",
        15,
        ("index-smollm2-wikitext2",),
        before=("sq profile --generate --share 0.05 --json {out}",),
        only=GRAPHED,
    ),
    Entry(
        "counters-h100",
        "python -m research.generate.counters --out {out}",
        "gpu",
        2,
        only=("kernels/sqkernels/", "spectralquant/bench/", "spectralquant/models/shapes.py"),
    ),
    Entry("cache-smollm2-h100", f"sq study cache --profile {{wiki}} {TEXT} --out {{out}}", "gpu", 2, WIKI),
    Entry("serving-codec", f"sq study serving-codec {TEXT} --out {{out}}", "gpu", 5),
    Entry("coder-h100", f"sq study coder --profile {{wiki}} {TEXT} --out {{out}}", "gpu", 2, WIKI),
    Entry("cold-speed-h100", f"sq study cold-speed --profile {{wiki}} {TEXT} --out {{out}}", "gpu", 6, WIKI),
    Entry(
        "profile-h100",
        "sq profile --context 32768,2048,8192,131072,262144 --batch 1,2,4,8,16 --json {out}",
        "gpu",
        5,
        only=KERNELS,
    ),
    Entry("profile-h100-8percent", f"{PROFILE} --share 0.08 --json {{out}}", "gpu", 1, only=KERNELS),
    Entry("profile-h100-steps", f"{PROFILE} --end-to-end --json {{out}}", "gpu", 1, only=KERNELS),
    Entry("tuning-h100", "sq study kernels --out {out}", "gpu", 2, only=KERNELS),
    Entry(
        "real-shapes-h100",
        "sq study shapes --device cuda --dtype bfloat16 --steps 2 --window 384 --out {out}",
        "gpu",
        10,
    ),
    Entry(
        "serving-cpu",
        "sq serve-check builtin:smollm2-135m --profile {out}.serving/profile --new-tokens 4 --trace 0 --json {out}",
        "serving",
        6,
        before=(SERVING_PROFILE,),
        borrows=(("hot_capacity_over_bf16", ("serving-hot-cpu", "hot_capacity_over_bf16")),),
    ),
    Entry(
        "serving-hot-cpu",
        "sq study serving-hot --profile {out}.serving/hot --out {out}",
        "serving",
        8,
        before=(
            "sq calibrate --for serving --tier hot --target ratio=4 --steps 24 --window 1024 --held-out 2 --held-out-window 1024 "
            "--out {out}.serving/hot",
        ),
    ),
    Entry(
        "serving-soak",
        "python -m research.serving.soak 600 {out} --profile {out}.serving/profile",
        "serving",
        13,
        before=(SERVING_PROFILE,),
    ),
    Entry(
        "serving-h100",
        "sq study serving --profile {out}.serving/profile --out {out}",
        "serving-gpu",
        16,
        before=(
            "sq calibrate --for serving --device cuda --steps 100 --window 1024 --target ratio=30 --held-out 4 --held-out-window 1024 "
            "--out {out}.serving/profile",
        ),
        parts=tuple(
            Part(name, f"sq study serving --part {name}{more} --out {{out}}", minutes, gpus)
            for name, more, minutes, gpus in (
                ("tp", "", 4, 2),
                ("large", "", 5, 1),
                ("decode", "", 3, 1),
                ("small", " --profile {out}.serving/profile", 3, 1),
                ("floor", "", 2, 1),
            )
        ),
        borrows=(
            *(
                (name, ("serving-hot-8b-h100", name))
                for name in ("hot_capacity_over_bf16", "hot_tokens_per_s_over_fp8_b8_32k")
            ),
            *(
                (f"decode_alone{name}_over_recompute", ("serving-decode-h100", f"alone_decode{name}_over_recompute"))
                for name in ("", "_storing")
            ),
        ),
    ),
    Entry("serving-decode-h100", "python -m research.serving.decode_alone {out}", "serving-gpu", 6),
    Entry(
        "serving-hot-h100",
        "sq study serving-hot --profile {out}.serving/hot --out {out}",
        "serving-gpu",
        4,
        before=(GPU_HOT_PROFILE,),
    ),
    Entry(
        "serving-hot-8b-h100",
        "sq study serving-hot --part large --out {out}",
        "serving-gpu",
        6,
    ),
    Entry(
        "calibrate-scale",
        f"sq study calibrate-scale {LONG_TEXT} --out {{out}}",
        "gpu",
        40,
        parts=(
            *(
                Part(name, f"sq study calibrate-scale --part {name} --out {{part}}", minutes, gpus)
                for name, minutes, gpus in (
                    ("scaling", 4, EVERY),
                    ("70b", 3, EVERY),
                    ("8b", 3, 1),
                    ("8b-small", 3, 1),
                    ("70b-one-card", 4, 1),
                )
            ),
            *(
                Part(
                    f"{short}-{name}",
                    f"sq study calibrate-scale {model} --part {name} {LONG_TEXT} --out {{part}}",
                    8,
                    shares=True,
                )
                for short, model in BUILTIN.items()
                for name in ("steps", "forms")
            ),
        ),
    ),
)

TOLERANCES: tuple[tuple[str, float, float], ...] = (
    # field names (whole, a regular expression), relative, absolute
    (r".*(_s|_us|seconds|seconds_low|seconds_high|speedup|tb_per_s|gb_s|gsymbols_s|peak_share|spread)", 0.35, 0.0),
    (r".*(_s_range|_quartiles|cpu_s|wall_s|token_ratio|prefill_ratio|share_of_prefill)", 0.5, 0.05),
    (r".*(peak|memory).*", 0.15, 0.0),
    (r".*(kl|kl_nats|kl_nats_ci95|kl_bounded)", 0.1, 2e-4),
    (r".*(ppl|ppl_ci95)", 0.05, 0.05),
    (r".*(top1|needle)", 0.0, 0.1),
    (r".*", 0.05, 1e-3),
)
"""How far a figure may be from the stored one: other machines of the same kind, other versions of libraries, other noise."""


def tolerance(field: str) -> tuple[float, float]:
    """Relative and absolute difference that a field is allowed."""
    return next((rel, absolute) for pattern, rel, absolute in TOLERANCES if re.fullmatch(pattern, field))


def entry(name: str) -> Entry | None:
    """The entry of a file."""
    return next((e for e in TABLE if e.name == name), None)
