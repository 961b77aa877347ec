"""A model that is larger than its card, calibrated on that card: `python -m research.scale.streamed OUT.json MODEL STEPS WINDOW
[BYTES]`.

As many layers as the plan leaves room for (or BYTES of weights) stay on the card; the others lie in host memory, and accelerate fetches each one
twice a step. Weights are random, each drawn on the device and then put where it belongs. Steps, bases and the cold tier are
made; nothing is measured on held-out text, which would run the model some thirty times more. OUT.json: where the weights
lie and the plan at once, times and peaks at the end.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import torch
from accelerate import cpu_offload, dispatch_model, infer_auto_device_map
from torch import nn
from transformers import ByT5Tokenizer, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from spectralquant.calibration.options import CalibrationSettings
from spectralquant.calibration.plan import USABLE, PlannedModel, Planner, keep_within, plan_for
from spectralquant.calibration.run import CalibrationRun
from spectralquant.files import write_json
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.models.random_model import PREFIX, random_config
from spectralquant.models.shapes import parse_shape
from spectralquant.provenance import device_facts
from spectralquant.surroundings import own_run
from spectralquant.text.read import load_text
from spectralquant.text.tokens import TokenText, tokenize

HOST = "cpu"


def resident_bytes(spec: str, settings: CalibrationSettings, memory: int) -> int:
    """Bytes of weights that may stay on a card of `memory` bytes beside what the plan says and two layers on their way."""
    config = random_config(parse_shape(spec.removeprefix(PREFIX)))
    model = PlannedModel.of_config(spec, config, 2)
    layer = model.weights // config.num_hidden_layers
    outer = 2 * config.vocab_size * config.hidden_size * 2
    peak = Planner(model, cuda=True).plan(settings).peak - model.weights
    return max(0, int(USABLE * memory) - peak - 2 * layer - outer)


def streamed_model(spec: str, resident: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The random model of a shape, `resident` bytes of it on `device` and the rest in host memory."""
    torch.manual_seed(0)
    config = random_config(parse_shape(spec.removeprefix(PREFIX)))
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    places: dict[str, Any] = {"": HOST}
    if resident:
        whole = list(model._no_split_modules)
        most = {device.index or 0: resident, HOST: 1 << 50}
        places = infer_auto_device_map(model, most, no_split_module_classes=whole, dtype=dtype)
    for name, module in model.named_modules():
        own = list(module.named_parameters(recurse=False))
        for key, parameter in own:
            setattr(module, key, nn.Parameter(torch.empty_like(parameter, device=device)))
        if own:
            model._init_weights(module)
        for key, _ in own:
            if _place(name, places) == HOST:
                setattr(module, key, nn.Parameter(getattr(module, key).data.to(HOST)))
    if set(places.values()) == {HOST}:
        return cpu_offload(model, execution_device=device).eval()
    return dispatch_model(model, places, main_device=device.index or 0).eval()


def _place(name: str, places: dict[str, Any]) -> Any:
    parts = name.split(".")
    return next(places[key] for n in range(len(parts), -1, -1) if (key := ".".join(parts[:n])) in places)


def main(out: str, spec: str, steps: str, window: str, most: str = "") -> None:
    """Load, plan, calibrate, write."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    memory = torch.cuda.get_device_properties(device).total_memory if gpu else None
    settings = CalibrationSettings(steps=int(steps), window=int(window), tiers=("cold",), recompute=True)
    settings = replace(settings, held_out_windows=1, held_out_window=3 * settings.block)
    resident = 0 if memory is None else int(most) if most else resident_bytes(spec, settings, memory)
    begin = time.perf_counter()
    model = streamed_model(spec, resident, torch.bfloat16 if gpu else torch.float32, device)
    loaded = LoadedModel(spec, model, ByT5Tokenizer(), probe_geometry(model))
    sizes = [(p.is_meta, p.numel() * p.element_size()) for p in model.parameters()]
    plan = plan_for(PlannedModel.of_loaded(loaded), settings, memory)
    if memory is not None:
        keep_within(model, memory)
    row: dict[str, Any] = {
        "options": f"{steps} steps, layers beyond {resident / 1e9:.0f} GB on the host, nothing measured on held-out text",
        "load_s": round(time.perf_counter() - begin, 1),
        "weights_on_card_bytes": sum(size for away, size in sizes if not away),
        "weights_on_host_bytes": sum(size for away, size in sizes if away),
        "plan": {"predicted": True, "peak_bytes": plan.peak, "span": plan.span, "host_bytes": plan.host}
        | {"stages": {stage.name: stage.peak for stage in plan.stages}},
        **device_facts(device),
    }
    write_json(out, row)
    need = settings.steps * settings.window + 4 * settings.held_out_window
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc", offline=True), need)
    write_json(out, row | calibrated(loaded, text, plan.settings) | {"measured": True})


def calibrated(loaded: LoadedModel, text: TokenText, settings: CalibrationSettings) -> dict[str, Any]:
    """Steps, bases, the cold tier at its usual target, head spectra: times, peaks and sizes."""
    shown = lambda stage, done, total: print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)  # noqa: E731
    with own_run(loaded.model):
        run = CalibrationRun(loaded, text, settings, "text", None, False, None, shown)
        with run.stage("capture"):
            sums, samples = run.first_pass()
        with run.stage("bases"):
            fitter = run.cold_fitter(sums, samples)
        with run.stage("cold tier"):
            ratio = 16 / (settings.target("cold").bits or 16 / 30)
            tier, report = fitter.fit(fitter.step_for_ratio(ratio))
        with run.stage("heads"):
            profile = run.assemble(sums, {"cold": tier}, {"cold": run.cold_summary(ratio, report)})
    profile.seal()
    return {
        "seconds": round(sum(run.times.values()), 1),
        "stages_s": run.times,
        "capture_s": run.capture_times,
        "peak_bytes": max(run.peaks.values(), default=None),
        "stages_peak_bytes": run.peaks,
        "profile_bytes": profile.sidecar.tensor_bytes,
        "steps": settings.steps,
        "span_width": profile.sidecar.calibration.span_width,
        "solver": profile.sidecar.calibration.solver,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
