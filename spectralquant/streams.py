"""Memory that several CUDA streams use.

Work on one stream knows nothing of another's. Two things have to be said: to the streams, which of them waits for which
(events), and to the allocator, which streams still use a tensor (`record_stream`): else memory that is freed here is
written again while another stream reads it. On a CPU all of this does nothing.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in a value made of tuples, lists, dictionaries and dataclasses."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def use_here(value: Any) -> None:
    """Keep the memory of a value's tensors until the current stream is done with them, whoever made and frees them."""
    for tensor in tensors_in(value):
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def finish_here(device: torch.device) -> None:
    """Wait on the host for the current stream: what it has made may then be used by any stream."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def as_caller(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function` for other threads to call: on this thread's stream, and in its inference mode."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def call(*arguments: Any) -> Any:
        with torch.cuda.stream(stream), torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(*arguments)

    return call


def to_device(parts: Sequence[np.ndarray], device: torch.device, axis: int = 0) -> Tensor:
    """Arrays joined on a device; on the way to a GPU through pinned memory, so that nobody waits."""
    if device.type != "cuda":
        return torch.from_numpy(np.concatenate(parts, axis=axis))
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    host = on_the_way(shape, parts[0].dtype, device)
    np.concatenate(parts, axis=axis, out=host.numpy())
    return host.to(device, non_blocking=True)


def on_the_way(shape: Sequence[int], dtype: np.dtype, device: torch.device) -> Tensor:
    """Memory of the host to fill before it goes to a device without anybody waiting: pinned for a GPU."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(list(shape), dtype=kind, pin_memory=device.type == "cuda")


def reserve_pinned(largest: int, times: int) -> None:
    """Have PyTorch keep pinned memory for `times` pieces of each size up to `largest` bytes; taking it anew is slow (1 GB in about a
    second), and it keeps sizes that are powers of two."""
    sizes = [1 << bits for bits in range(12, max(13, (largest - 1).bit_length() + 1))]
    pieces = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes for _ in range(times)]
    pieces.clear()


def to_host(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy a tensor to the host; the call that comes back waits for it and gives the array."""
    if not tensor.is_cuda:
        return tensor.numpy
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    done = torch.cuda.current_stream(tensor.device).record_event()

    def result() -> np.ndarray:
        done.synchronize()
        return pinned.numpy()

    return result


class Handover:
    """A value made on the current stream, for whichever stream takes it: that one waits, the host does not."""

    def __init__(self, value: Any, device: torch.device) -> None:
        self._value, self._device = value, device
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._maker = torch.cuda.current_stream(device)
            self._event = self._maker.record_event()

    def take(self) -> Any:
        """The value, ready for the current stream."""
        if self._event is not None:
            stream = torch.cuda.current_stream(self._device)
            if stream != self._maker:
                stream.wait_event(self._event)
                use_here(self._value)
        return self._value


class OneAtATime:
    """A block of code that changes tensors: one thread at a time, and each stream after the one before it."""

    def __init__(self, device: torch.device) -> None:
        self._lock, self._device = threading.Lock(), device
        self._before: Handover | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._before is not None:
            self._before.take()

    def __exit__(self, *error: object) -> None:
        self._before = Handover(None, self._device)
        self._lock.release()


class StreamUsers:
    """The streams that have used some memory so far."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int | None, int], torch.cuda.Stream] = {}

    def __iter__(self) -> Iterator[torch.cuda.Stream]:
        return iter(list(self._streams.values()))

    def __contains__(self, stream: torch.cuda.Stream) -> bool:
        return _key(stream) in self._streams

    def add(self, stream: torch.cuda.Stream) -> None:
        """Note a user."""
        self._streams[_key(stream)] = stream

    def hold_back(self, stream: torch.cuda.Stream) -> None:
        """Let `stream` wait for what all others have been given so far."""
        for other in self:
            if other != stream:
                stream.wait_stream(other)

    def finish(self) -> None:
        """Wait on the host for what all have been given so far."""
        for stream in self:
            stream.synchronize()


def _key(stream: torch.cuda.Stream) -> tuple[int | None, int]:
    return stream.device.index, stream.cuda_stream
