"""Do models of real size work? Load, calibrate, read and generate from every tier, with each step's time and memory.

The weights are random, so qualities mean nothing; shapes, precisions, memory and times are those of the real model.
Logits of every tier are compared with those of transformers' own cache all the same: the exact tier must agree.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from spectralquant.cache.persist.prompt import pack_prompt
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import CalibrationSettings
from spectralquant.models.config import load_config
from spectralquant.models.forward import with_cache
from spectralquant.models.load import LoadedModel, load_model
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import device_facts, peak_memory_bytes, provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

MODELS = ("random:llama-3.1-8b", "random:qwen2.5-7b", "random:llama-3.1-70b:layers=4")
TIERS = ("exact", "hot", "warm", "cold")
EXACT_ENOUGH = 0.05  # relative distance of logits: rounding of bfloat16 in another order
Row = dict[str, Any]


@dataclass(frozen=True)
class ShapeStudy:
    """steps, window: of the calibration. prompt, fed: tokens in one pass and one by one. generated: by `generate`."""

    steps: int = 2
    window: int = 384
    span: str = "layer"
    prompt: int = 1024
    fed: int = 8
    generated: int = 8
    data: str = "builtin:pydoc"


@dataclass
class StepClock:
    """Seconds and peak memory of steps, one row each; `save` gets all rows after every step."""

    device: torch.device
    save: Callable[[list[Row]], None]
    rows: list[Row] = field(default_factory=list)

    def step(self, model: str, name: str, work: Callable[[], Row], **facts: Any) -> bool:
        """Do `work` and note what it returns, or why it failed; whether it went well."""
        cuda = self.device.type == "cuda"
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        row: Row = {"model": model, "step": name, **facts, "ok": True}
        start = time.perf_counter()
        try:
            row |= work()
            if cuda:
                torch.cuda.synchronize(self.device)
        except Exception as error:  # whatever it is, it is this study's finding, and the next model is to be tried
            row |= {
                "ok": False,
                "error": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}",
            }
        row["seconds"] = round(time.perf_counter() - start, 3)
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.device) if cuda else peak_memory_bytes()
        self.rows.append(row)
        self.save(list(self.rows))
        return row["ok"]


def shape_study(
    models: tuple[str, ...],
    study: ShapeStudy,
    device: torch.device,
    dtype: str,
    save: Callable[[Results], None] = lambda _: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A row a model and step. `save` gets the results so far after every step, so that a run cut short leaves them; `kept`
    keeps whole models.

    Raises:
        InputError, SourceError: a model that does not exist.
    """
    for model in models:
        load_config(model, offline=True)
    facts = provenance(
        **device_facts(device), dtype=dtype, memory="peak of CUDA allocations in the step, or of the process"
    )

    def result(rows: list[Row]) -> Results:
        return results_file("shapes", rows, facts, study=asdict(study))

    clock = StepClock(device, lambda rows: save(result(rows)))
    for number, model in enumerate(models):
        progress(model, number, len(models))
        clock.rows += kept.value(model, functools.partial(_model_rows, model, study, device, dtype, clock))
    progress("done", len(models), len(models))
    return result(clock.rows)


def _model_rows(model: str, study: ShapeStudy, device: torch.device, dtype: str, clock: StepClock) -> list[Row]:
    """The rows of one model, taken off the clock."""
    before = len(clock.rows)
    _one_model(model, study, device, dtype, clock)
    rows, clock.rows[before:] = clock.rows[before:], []
    return rows


def _one_model(spec: str, study: ShapeStudy, device: torch.device, dtype: str, clock: StepClock) -> None:
    loaded: LoadedModel | None = None
    profile: CalibrationProfile | None = None

    def load() -> Row:
        nonlocal loaded
        loaded = load_model(spec, device=str(device), dtype=dtype, offline=True)
        g = loaded.geometry
        count = sum(p.numel() for p in loaded.model.parameters())
        return {
            "parameters": count,
            "layers": g.layers,
            "heads": g.heads,
            "kv_heads": g.kv_heads,
            "head_dim": g.head_dim,
        }

    def calibrate() -> Row:
        nonlocal profile
        settings = CalibrationSettings(
            steps=study.steps,
            window=study.window,
            span=study.span,
            tiers=("cold", "warm", "hot"),
            held_out_windows=1,
            held_out_window=study.window,
        )
        text = tokenize(loaded.tokenizer, load_text(study.data, offline=True), 4 * study.window * (study.steps + 2))
        profile = calibrate_model(loaded, text, settings, text_name=study.data)
        predicted = {name: tier.predicted_ratio for name, tier in profile.sidecar.tiers.items()}
        return {
            "steps": study.steps,
            "window": study.window,
            "stages_s": profile.sidecar.run["stages_s"],
            "ratios": predicted,
        }

    if not clock.step(spec, "load", load) or not clock.step(spec, "calibrate", calibrate):
        return
    ids = _tokens(loaded, study)
    reference: Tensor | None = None

    def uncompressed() -> Row:
        nonlocal reference
        cache = DynamicCache(config=loaded.model.config)
        seconds, reference = _fed(loaded.model, cache, ids, study)
        return seconds

    if not clock.step(spec, "read", uncompressed, tier="none"):
        return
    for tier in TIERS:
        clock.step(spec, "read", lambda tier=tier: _read(loaded, profile, tier, ids, study, reference), tier=tier)
        clock.step(spec, "generate", lambda tier=tier: _generate(loaded, profile, tier, ids, study), tier=tier)
    clock.step(spec, "pack", lambda: _pack(loaded, profile, ids[:, : study.prompt]))


def _tokens(loaded: LoadedModel, study: ShapeStudy) -> Tensor:
    """Token ids `[1, prompt + fed]` from the end of the text."""
    need = study.prompt + study.fed
    return (
        tokenize(loaded.tokenizer, load_text(study.data, offline=True), 2 * need).windows(need)[-1:].to(loaded.device)
    )


def _fed(model: nn.Module, cache: Any, ids: Tensor, study: ShapeStudy) -> tuple[Row, Tensor]:
    """A prompt in one pass, then token by token: times, and logits `[fed, V]`."""
    with torch.no_grad():
        start = time.perf_counter()
        out = model(input_ids=ids[:, : study.prompt], **with_cache(model, cache), use_cache=True, logits_to_keep=1)
        _finish(out.logits)
        prefill = time.perf_counter() - start
        logits = []
        begin = start
        for i in range(study.prompt, study.prompt + study.fed):
            if i == study.prompt + 1:  # the first step compiles kernels
                begin = _finish(logits[-1])
            logits.append(model(input_ids=ids[:, i : i + 1], **with_cache(model, cache), use_cache=True).logits[0, -1])
        token = (_finish(logits[-1]) - begin) / max(1, study.fed - 1)
    return {"prefill_s": prefill, "token_s": token}, torch.stack(logits).float()


def _finish(tensor: Tensor) -> float:
    """The time at which a tensor is ready."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def _read(
    loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor, study: ShapeStudy, reference: Tensor
) -> Row:
    cache = SpectralCache(loaded.model, profile, tier=tier)
    row, logits = _fed(loaded.model, cache, ids, study)
    stats = cache.stats()
    distance = float((logits - reference).norm() / reference.norm())
    row |= {
        "logit_distance": distance,
        "top1": float((logits.argmax(-1) == reference.argmax(-1)).float().mean()),
        "payload_ratio": stats.payload_ratio,
        "resident_ratio": stats.resident_ratio,
        "coded_tokens": sum(t.tokens for t in stats.tiers.values()),
        "kernel_reads": stats.spent.kernel_reads,
        "reconstructor_failure": stats.reconstructor_failure,
    }
    if not bool(logits.isfinite().all()) or not stats.tiers or (tier == "exact" and distance > EXACT_ENOUGH):
        row |= {"ok": False, "error": "logits are not finite, nothing was coded, or the exact tier is not exact"}
    return row


def _generate(loaded: LoadedModel, profile: CalibrationProfile, tier: str, ids: Tensor, study: ShapeStudy) -> Row:
    cache = SpectralCache(loaded.model, profile, tier=tier)
    prompt = ids[:, : study.prompt]
    made = loaded.model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        **with_cache(loaded.model, cache),
        max_new_tokens=study.generated,
        min_new_tokens=study.generated,
        do_sample=False,
        pad_token_id=0,
    )
    return {"new_tokens": made.shape[1] - study.prompt, "tiers": sorted(cache.stats().tiers)}


def _pack(loaded: LoadedModel, profile: CalibrationProfile, prompt: Tensor) -> Row:
    start = time.perf_counter()
    packet = pack_prompt(loaded.model, profile, prompt)[0]
    packed = time.perf_counter() - start
    cache = SpectralCache.unpack(loaded.model, profile, packet)
    with torch.no_grad():
        out = loaded.model(input_ids=prompt[:, -1:], **with_cache(loaded.model, cache), use_cache=True)
    if not bool(out.logits.isfinite().all()):
        return {"ok": False, "error": "logits after unpacking are not finite"}
    ratio = packet.coded_fp16_bytes / packet.coded_bytes
    return {"pack_s": packed, "bytes": packet.nbytes, "payload_ratio": ratio}


def failures(result: Results) -> Iterator[str]:
    """One line a step that did not go well."""
    for row in result.rows:
        if not row.ok:
            where = " ".join(filter(None, (row.model, row.step, row.tier)))
            yield f"{where}: {row.error}"
