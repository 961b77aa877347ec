"""Which model this is, by its weights: whatever dtype, device or wrapper it was loaded with.

Two hashes of up to 65,536 values a tensor, rounded to bfloat16 and to float16, tell fine-tuned models apart. Rounding
twice is not rounding once, so a model in one half precision cannot be hashed as if it had been loaded in the other:
there, a smaller sample of values is compared, each within the rounding of both dtypes.
"""

from __future__ import annotations

import base64
import hashlib
import weakref
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectralquant.geometry import CacheGeometry
from spectralquant.hooks.wrappers import named_parameters, usable_model
from spectralquant.models.schema import ModelIdentity
from spectralquant.models.weights import Weight, embedding_weight, named_weights, state_of_adapters
from spectralquant.surroundings import own_arithmetic

SAMPLES_PER_TENSOR = 65_536
SKETCH_VALUES = 16_384
KEY_VALUES = 8
HALVES = (torch.bfloat16, torch.float16)

_known: weakref.WeakKeyDictionary[nn.Module, tuple[object, dict[torch.dtype, str]]] = weakref.WeakKeyDictionary()


@torch.no_grad()
@own_arithmetic()
def weights_sha256(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> str:
    """SHA-256 over every parameter's name, shape and up to 65,536 evenly spaced elements, rounded to `dtype`.

    Sampling keeps it near a second for an 8B model and still sees any fine-tuning, which moves all weights. It is
    computed once a model and again when weights have changed.
    """
    return _weights_sha256(usable_model(model, spread=True))[dtype]


@torch.no_grad()
@own_arithmetic()
def _weights_sha256(model: nn.Module) -> dict[torch.dtype, str]:
    key = _state(model)
    known = _known.get(model)
    if known is None or known[0] != key:
        known = _known[model] = (key, _hashes(named_weights(model)))
    return known[1]


def model_identity(name: str, model: nn.Module, geometry: CacheGeometry) -> ModelIdentity:
    """Describe a loaded model for a profile's sidecar."""
    model = usable_model(model, spread=True)
    return ModelIdentity(
        name=name,
        architecture=type(model).__name__,
        layers=geometry.layers,
        heads=geometry.heads,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        rotary=list(geometry.rotary),
        vocabulary=embedding_weight(model).shape[0],
        weights_sha256_bfloat16=weights_sha256(model, torch.bfloat16),
        weights_sha256_float16=weights_sha256(model, torch.float16),
        weights_dtype=_dtype_name(model.dtype),
        weights_sketch=_pack(weights_sketch(model)) if model.dtype in HALVES else None,
    )


def difference(identity: ModelIdentity, model: nn.Module) -> str | None:
    """Why a model is not the one described, or None where it is."""
    model = usable_model(model, spread=True)
    own = _weights_sha256(model)
    if own[torch.bfloat16] == identity.weights_sha256_bfloat16 or own[torch.float16] == identity.weights_sha256_float16:
        return None
    calibrated, now = identity.weights_dtype, _dtype_name(model.dtype)
    halves = {_dtype_name(dtype) for dtype in HALVES}
    if identity.weights_sketch is not None and now in halves and now != calibrated:
        theirs = _unpack(identity.weights_sketch)
        if same_rounded(theirs, getattr(torch, calibrated), weights_sketch(model), model.dtype):
            return None
    if calibrated is None and now in halves:
        return (
            f"The profile does not name the dtype it was calibrated in, and this model is in {now}: the same weights in "
            "another dtype look different to it. Load the model in the dtype of the calibration, in float32, or calibrate "
            "again."
        )
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if not p.is_floating_point()})
    if kinds:
        return f"This model's weights are quantized ({', '.join(kinds)}): calibrate it as it is."
    return "Calibrate a profile for this model."


@torch.no_grad()
@own_arithmetic()
def weights_sketch(model: nn.Module) -> Tensor:
    """About 16,384 values float32 of all parameters, at places that names and shapes alone decide."""
    weights = named_weights(model)
    count = max(16, min(256, SKETCH_VALUES // max(1, len(weights))))
    return torch.cat([_spread(w.read(), count).float().cpu() for w in weights])


def same_rounded(a: Tensor, a_dtype: torch.dtype, b: Tensor, b_dtype: torch.dtype) -> bool:
    """Whether two samples can be roundings, to their dtypes, of the same numbers."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    apart = (a - b).abs() > _half_spacing(a, a_dtype) + _half_spacing(b, b_dtype)
    for x, y, dtype in ((a, b, a_dtype), (b, a, b_dtype)):
        apart &= ~(x.isinf() & (y.abs() >= torch.finfo(dtype).max) & (x.sign() == y.sign()))
    return not bool((apart & ~(a == b)).any()) and bool((a.isnan() == b.isnan()).all())


def _half_spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The most that rounding to `dtype` can have moved a value that is now `x`."""
    info = torch.finfo(dtype)
    finite = torch.nan_to_num(x.abs(), nan=0.0, posinf=info.max)
    return finite.clamp_min(info.smallest_normal).log2().floor().exp2() * info.eps / 2


def _hashes(weights: Sequence[Weight]) -> dict[torch.dtype, str]:
    digests = {dtype: hashlib.sha256() for dtype in HALVES}
    for weight in weights:
        flat = weight.read().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)][:SAMPLES_PER_TENSOR].cpu()
        for dtype, digest in digests.items():
            digest.update(f"{weight.name}{weight.shape}".encode())
            digest.update(sample.to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return {dtype: digest.hexdigest() for dtype, digest in digests.items()}


def _state(model: nn.Module) -> object:
    """What changes whenever weights do: names, shapes, adapters in use, and a few values of every resident parameter.

    Values are looked at, because a write through `parameter.data` leaves no trace in version counters.
    """
    named = list(named_parameters(model))
    facts = tuple((name, tuple(p.shape), p.dtype) for name, p in named)
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for _, parameter in named:
        local = getattr(parameter, "_local_tensor", parameter)
        if not local.is_meta:
            groups.setdefault((local.device, local.dtype), []).append(_spread(local, KEY_VALUES))
    values = tuple(torch.cat(parts).cpu().view(torch.uint8).numpy().tobytes() for parts in groups.values())
    return facts, state_of_adapters(model), values


def _spread(x: Tensor, count: int) -> Tensor:
    """Up to `count` evenly spaced elements; the odd stride visits all columns of a matrix."""
    total = x.numel()
    stride = max(1, (total // count - 1) | 1)
    if x.is_contiguous():  # one operation, since models have hundreds of weights
        return x.as_strided((min(count, -(-total // stride)),), (stride,))
    return x.reshape(-1)[::stride][:count]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pack(sketch: Tensor) -> str:
    return base64.b64encode(zlib.compress(sketch.numpy().tobytes(), 9)).decode()


def _unpack(text: str) -> Tensor:
    """The sketch of a sidecar; empty (so that it fits nothing) where it is damaged."""
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 64 << 20)
        return torch.frombuffer(bytearray(data), dtype=torch.float32)
    except (ValueError, zlib.error):
        return torch.empty(0)
