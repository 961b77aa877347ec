"""Whole decode steps with random weights, dense and compressed, both replayed as CUDA graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spectralquant.bench.baselines import Dense
from spectralquant.bench.cell import Bench, fastest, kernel_call
from spectralquant.bench.decoder import Attend, RandomDecoder
from spectralquant.bench.device.timing import side_stream
from spectralquant.bench.inputs import CodeSettings, Inputs, random_inputs, random_matrices
from spectralquant.bench.prediction import Roof, decode_ms
from spectralquant.models.shapes import ModelShape
from spectralquant.results.speed import KernelRow, StepRow
from sqkernels.common import RowMatrices

REPLAYS = 30


def end_to_end_rows(
    bench: Bench, batch: int, context: int, kernel: str, cells: Sequence[KernelRow], baselines: dict[str, Dense]
) -> list[StepRow]:
    """Rows for the fastest dense baseline and for `kernel`: tokens a second, and beside ours what Amdahl's law allows when
    attention alone becomes faster by what the cell measured."""
    here = [r for r in cells if (r.batch, r.context) == (batch, context)]
    best = fastest([r for r in here if r.kernel in baselines])
    ours = next((r for r in here if r.kernel == kernel and r.correct), None)
    if best is None or ours is None:
        return [StepRow(method=kernel, batch=batch, context=context, failed="no correct kernel or baseline here")]
    decoder = RandomDecoder(bench.shape, bench.matrices.device, context - 1)
    dense = _step_ms(decoder, batch, _dense_attend(bench, batch, context, baselines[best.kernel]))
    coded = _step_ms(decoder, batch, _coded_attend(bench, batch, context, kernel))
    saved = bench.shape.layers * (best.time_us - ours.time_us) / 1000
    ideal = dense[0] - saved
    roof = Roof.measured(bench.peaks)
    rows = []
    for method, times, attention in ((best.kernel, dense, best.ideal_us), (kernel, coded, ours.ideal_us)):
        rows.append(
            StepRow(
                method=method,
                batch=batch,
                context=context,
                step_ms=times[0],
                step_ms_spread=list(times[1:]),
                tokens_per_s=1000 * batch / times[0],
                predicted_ms=decode_ms(roof, bench.shape, attention, batch),
            )
        )
    ours = rows[1]
    ours.speedup = dense[0] / coded[0]
    ours.ideal_ms = ideal
    ours.ideal_tokens_per_s = 1000 * batch / ideal
    ours.share_of_ideal = ideal / coded[0]
    return rows


def whole_step_ms(shape: ModelShape, settings: CodeSettings, context: int, batch: int, device: torch.device) -> float:
    """Median milliseconds of a whole decode step of a model with random weights over hot codes, as one CUDA graph."""
    decoder = RandomDecoder(shape, device, context - 1)
    matrices = random_matrices(shape, settings, device)
    attend = _coded(shape, matrices, settings, batch, context, "spectral_decode")
    return _step_ms(decoder, batch, attend)[0]


def _dense_attend(bench: Bench, batch: int, context: int, run: Dense) -> Attend:
    shape = bench.shape
    size = (batch, shape.kv_heads, context, shape.head_dim)
    caches = [
        tuple(torch.empty(size, device=bench.matrices.device, dtype=torch.bfloat16).normal_() for _ in range(2))
        for _ in range(shape.layers)
    ]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = caches[layer]
        keys[:, :, -1], values[:, :, -1] = key, value
        return run(query.contiguous(), keys, values)

    return attend


def _coded_attend(bench: Bench, batch: int, context: int, kernel: str) -> Attend:
    return _coded(bench.shape, bench.matrices, bench.settings, batch, context, kernel)


def _coded(
    shape: ModelShape, matrices: RowMatrices, settings: CodeSettings, batch: int, context: int, kernel: str
) -> Attend:
    inputs = [random_inputs(shape, matrices, batch, context, settings.window, seed) for seed in range(shape.layers)]
    call = kernel_call(kernel, settings)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        own = inputs[layer]
        own.exact.window_keys[:, :, -1], own.exact.window_values[:, :, -1] = key, value
        return call(Inputs(query.contiguous(), own.pages, own.exact))

    return attend


def _step_ms(decoder: RandomDecoder, batch: int, attend: Attend) -> tuple[float, float, float]:
    """(median, 20th, 80th percentile) of a step, tokens fed back."""
    tokens = torch.randint(0, decoder.shape.vocab, (batch,), device=decoder.cos.device)
    return _replayed(lambda: decoder.step(tokens, attend), tokens)


def _replayed(step: Callable[[], tuple[Tensor, Tensor]], tokens: Tensor) -> tuple[float, float, float]:
    stream = side_stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            logits = step()[1]
    stream.synchronize()
    if not bool(torch.isfinite(logits).all()):
        raise RuntimeError("a decode step gave values that are not finite")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        tokens.copy_(step()[0])
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times.sort()
    return statistics.median(times), times[REPLAYS // 5], times[-1 - REPLAYS // 5]
