"""Which architectures work: small random models, each calibrated, read from every tier, generated from, packed, unpacked.

An architecture is *right* when exact tiers agree with transformers' own cache, when a fine step does nearly, and when
packets come back; it is *refused* when `UnsupportedModelError` says why. Anything else is a fault, and named.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    ByT5Tokenizer,
    Cache,
    DynamicCache,
)

from research.architectures.configurations import ARCHITECTURES, Architecture
from spectralquant.cache.persist.prompt import pack_prompt, unpack_cache
from spectralquant.cache.spectral_cache import SpectralCache
from spectralquant.calibrating.api import calibrate_model
from spectralquant.calibration.options import TIERS, CalibrationSettings
from spectralquant.calibration.targets import Target
from spectralquant.errors import UnsupportedModelError
from spectralquant.geometry import BLOCK, SINKS, CacheGeometry
from spectralquant.models.forward import with_cache
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.profile.model import CalibrationProfile
from spectralquant.provenance import provenance
from spectralquant.results.files import results_file
from spectralquant.results.schema import Results
from spectralquant.results.unfinished import NOTHING_KEPT, Kept
from spectralquant.text.read import load_text
from spectralquant.text.tokens import TokenText, tokenize

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
PROMPT, NEXT, ALONE, NEW = 700, 12, 4, 6
SCALE = 4.0
SETTINGS = CalibrationSettings(
    steps=2,
    window=384,
    tiers=TIERS,
    targets={"cold": Target("ratio", 2.5), "warm": Target("bits", 8.0), "hot": Target("bits", 8.0)},
    held_out_windows=1,
    held_out_window=384,
)
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]
# Largest distance of logits from those of transformers' own cache, by what was read. 1 is the distance to the logits after
# another text in place of the tokens that are coded: a cache that lost them would be there.
LIMITS = {"exact": 1e-3, "cold": 0.1, "warm": 0.1, "hot": 0.1, "packet": 0.1, "packed prompt": 0.1}
LEAST_RATIO = 1.02


def architecture_study(
    chosen: Sequence[Architecture] = ARCHITECTURES,
    progress: Progress = lambda name, done, total: None,
    kept: Kept = NOTHING_KEPT,
) -> Results:
    """A results file with one row an architecture."""
    rows = []
    for done, architecture in enumerate(chosen):
        progress(architecture.name, done, len(chosen))
        rows.append(kept.value(architecture.name, functools.partial(try_architecture, architecture)))
    progress("", len(chosen), len(chosen))
    return results_file("architectures", rows, provenance(transformers=transformers.__version__))


def try_architecture(architecture: Architecture) -> Row:
    """name, model_type, what, outcome, and reason (refused or wrong) or the model's shape and distances (right)."""
    start = time.perf_counter()
    row: Row = {"name": architecture.name, "model_type": architecture.model_type, "what": architecture.what}
    with _quiet():
        model = make_model(architecture)
        row["class"] = type(model).__name__
        try:
            row |= _try(model)
        except UnsupportedModelError as error:
            row |= {"outcome": REFUSED, "reason": str(error)}
        except Exception as error:  # whatever it is, it is this study's finding
            line = (str(error).strip() or "no message").splitlines()[0]
            row |= {"outcome": WRONG, "reason": f"{type(error).__name__}: {line}"}
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def make_model(architecture: Architecture) -> nn.Module:
    """The random model; weights are scaled up so that attention is not uniform."""
    config = AutoConfig.for_model(architecture.model_type, **architecture.fields())
    auto = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.mul_(SCALE)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.5)
    return model


def _try(model: nn.Module) -> Row:
    geometry = probe_geometry(model)
    text = _text()
    profile = calibrate_model(LoadedModel("random", model, ByT5Tokenizer(), geometry), text, SETTINGS)
    ids = text.ids[None, -PROMPT - NEXT :]
    exact = _follow(model, _read(model, DynamicCache(config=model.config), ids), ids)
    other = torch.cat(
        [ids[:, :SINKS], text.ids[None, : PROMPT - 2 * BLOCK - SINKS], ids[:, PROMPT - 2 * BLOCK :]], dim=1
    )
    scale = _distance(_follow(model, _read(model, DynamicCache(config=model.config), other), ids), exact)
    distances: dict[str, float] = {}
    faults: list[str] = []
    own = _generated(model, DynamicCache(config=model.config), ids)
    for tier in ("exact", *TIERS):
        cache = _read(model, _cache(model, profile, tier), ids)
        if not cache.coded_tokens or (tier != "exact" and not cache.stats().payload_ratio > LEAST_RATIO):
            faults.append(f"the {tier} tier compressed nothing")
        distances[tier] = _distance(_follow(model, cache, ids), exact) / scale
        made = _generated(model, _cache(model, profile, tier), ids)
        if made.shape != own.shape or (tier == "exact" and not torch.equal(made, own)):
            faults.append(f"the {tier} tier generates {made.tolist()}, not {own.tolist()}")
    packets = {
        "packet": _read(model, _cache(model, profile, "cold"), ids).pack()[0],
        "packed prompt": pack_prompt(model, profile, ids[:, :PROMPT])[0],
    }
    for name, packet in packets.items():
        back = unpack_cache(model, profile, packet), SpectralCache.unpack(model, profile, packet)
        distances[name] = max(_distance(_follow(model, cache, ids), exact) for cache in back) / scale
    faults += [
        f"{k}: logits are {v:.2g} from the exact ones, where another text's are 1"
        for k, v in distances.items()
        if not v <= LIMITS[k]
    ]
    row = _shape(geometry) | {
        "text_changes_logits_by": float(f"{scale:.2g}"),
        "distances": {k: float(f"{v:.2g}") for k, v in distances.items()},
        "outcome": RIGHT,
    }
    return row | ({"outcome": WRONG, "reason": "; ".join(faults)} if faults else {})


def _cache(model: nn.Module, profile: CalibrationProfile, tier: str) -> SpectralCache:
    return SpectralCache(model, profile, tier=tier, background=False)


@torch.no_grad()
def _read(model: nn.Module, cache: Cache, ids: Tensor) -> Cache:
    """The cache after the prompt."""
    model(input_ids=ids[:, :PROMPT], **with_cache(model, cache), use_cache=True)
    return cache


@torch.no_grad()
def _follow(model: nn.Module, cache: Cache, ids: Tensor) -> Tensor:
    """Logits `[NEXT, V]` of the tokens after the prompt: most in one pass, the last ones alone."""
    cuts = [PROMPT, *range(PROMPT + NEXT - ALONE, PROMPT + NEXT + 1)]
    given = with_cache(model, cache)
    parts = [model(input_ids=ids[:, a:b], **given, use_cache=True).logits[0] for a, b in itertools.pairwise(cuts)]
    return torch.cat(parts).float()


def _generated(model: nn.Module, cache: Cache, ids: Tensor) -> Tensor:
    """Tokens that `generate` makes after the prompt."""
    prompt = ids[:, :PROMPT]
    given = {"attention_mask": torch.ones_like(prompt), **with_cache(model, cache)}
    made = model.generate(prompt, **given, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return made[:, PROMPT:]


def _distance(logits: Tensor, exact: Tensor) -> float:
    """Relative distance of the median token, whatever constant the logits have.

    Not the mean: an expert chosen otherwise for one token, by however little, is no fault of a cache.
    """
    a, b = (x - x.mean(-1, keepdim=True) for x in (logits, exact))
    return ((a - b).norm(dim=-1) / b.norm(dim=-1)).median().item()


def _shape(geometry: CacheGeometry) -> Row:
    turned = sum(geometry.rotary)
    return {
        "layers": geometry.layers,
        "heads": geometry.heads,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "rotary_layers": turned,
        "rotary_pairs": geometry.layout.pairs if turned else None,
        "windows": list(geometry.windows),
    }


@functools.cache
def _text() -> TokenText:
    return tokenize(ByT5Tokenizer(), load_text("builtin:pydoc"), 6_000)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says about random configurations."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
