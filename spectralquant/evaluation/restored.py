"""The restored-prefix protocol: what a serving engine's tier does to the text that follows a prefix it restores.

A window of text is read exactly. The keys and values of its first tokens, a whole number of chunks, go through the codec and
come back all at once; the rest of the window then reads these, its own remaining exact, and is scored against the exact model.
Nothing of the prefix but its sinks stays exact, and errors do not accumulate: an engine stores what it computed exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from spectralquant.codec.serving.codec import KVChunk, ServingCodec
from spectralquant.errors import InputError
from spectralquant.evaluation.measure import Measurement
from spectralquant.evaluation.scores import scores
from spectralquant.evaluation.totals import StreamTotals
from spectralquant.evaluation.unigram import unigram_perplexity
from spectralquant.geometry import SINKS
from spectralquant.hooks.wrappers import model_device, runs_model
from spectralquant.models.limits import require_known_ids, require_positions

CHUNK = 256
PREFIX_SHARE = 3 / 4


def prefix_tokens(window: int, chunk: int) -> int:
    """Tokens of a window that are restored: three quarters, in whole chunks.

    Raises:
        InputError: the window has no room for one.
    """
    tokens = int(window * PREFIX_SHARE) // chunk * chunk
    if tokens <= SINKS:
        raise InputError(f"Windows of {window} tokens have no prefix of a chunk of {chunk}. Use longer ones.")
    return tokens


def measure_restored(
    model: nn.Module,
    windows: Tensor,
    codecs: Sequence[ServingCodec],
    *,
    chunk: int = CHUNK,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measurement]:
    """Each codec on windows of token ids `[N, T]`; the bytes are of the whole prefix, sinks and headers included."""
    prefix = prefix_tokens(windows.shape[1], chunk)
    require_known_ids(model, windows)
    require_positions(model, windows.shape[1], "A window", "Use shorter ones.")
    unigram = unigram_perplexity(windows[:, prefix + 1 :])
    out = [Measurement("serving", {"chunk": chunk}, 16, [], unigram) for _ in codecs]
    for done, ids in enumerate(windows):
        progress(done, len(windows))
        for measurement, totals in zip(out, restored_window(model, ids, codecs, prefix, chunk), strict=True):
            measurement.windows.append(totals)
    progress(len(windows), len(windows))
    return out


@torch.no_grad()
@runs_model
def restored_window(
    model: nn.Module, ids: Tensor, codecs: Sequence[ServingCodec], prefix: int, chunk: int
) -> list[StreamTotals]:
    """One window `ids: [T]` under every codec: its first `prefix` tokens restored, the others scored."""
    ids = ids.to(model_device(model))
    cache = DynamicCache()
    model(input_ids=ids[None, :prefix], past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
    keys, values = (torch.stack([pair[i] for pair in layers]) for i in range(2))
    exact = _continued(model, ids, prefix, keys, values)
    return [_restored(model, ids, codec, (keys, values), exact, chunk) for codec in codecs]


def _restored(
    model: nn.Module, ids: Tensor, codec: ServingCodec, pair: tuple[Tensor, Tensor], exact: Tensor, chunk: int
) -> StreamTotals:
    prefix = pair[0].shape[2]
    chunks = [KVChunk(at, *(x[:, :, at : at + chunk] for x in pair)) for at in range(0, prefix, chunk)]
    start = _now(codec)
    data = codec.encode(chunks)
    middle = _now(codec)
    back = codec.decode(data, pair[0].dtype)
    end = _now(codec)
    keys, values = (torch.cat([getattr(c, kind) for c in back], dim=2).to(pair[0]) for kind in ("keys", "values"))
    size = 2 * (keys.numel() + values.numel())
    total = StreamTotals(
        coded_tokens=prefix,
        fp16_bytes=size,
        coded_fp16_bytes=size,
        coded_bytes=sum(map(len, data)),
        encode_s=middle - start,
        decode_s=end - middle,
        change=(keys - pair[0]).float().norm().item() + (values - pair[1]).float().norm().item(),
    )
    _score(total, exact, _continued(model, ids, prefix, keys, values), ids[prefix + 1 :])
    return total


def _continued(model: nn.Module, ids: Tensor, prefix: int, keys: Tensor, values: Tensor) -> Tensor:
    """Log-probabilities `[T − prefix − 1, V]` of what follows a prefix whose keys and values are given."""
    cache = DynamicCache()
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.update(k[None], v[None], layer)
    positions = torch.arange(prefix, len(ids), device=ids.device)[None]
    logits = model(input_ids=ids[None, prefix:], position_ids=positions, past_key_values=cache, use_cache=True).logits
    return logits[0, :-1].float().log_softmax(-1)


def _score(total: StreamTotals, exact: Tensor, coded: Tensor, targets: Tensor) -> None:
    nll = lambda x: -x.gather(1, targets[:, None]).sum(dtype=torch.float64).item()  # noqa: E731
    total.tokens = len(targets)
    total.exact_nll, total.nll = nll(exact), nll(coded)
    total.kl = (exact.exp() * (exact - coded)).sum(dtype=torch.float64).item()
    total.top1 = int((exact.argmax(-1) == coded.argmax(-1)).sum())
    total.scores = {
        name: score(exact, coded, targets).sum(dtype=torch.float64).item() for name, score in scores().items()
    }


def _now(codec: ServingCodec) -> float:
    if codec.device.type == "cuda":
        torch.cuda.synchronize(codec.device)
    return time.perf_counter()
