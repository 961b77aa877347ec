"""`AsyncReconstructor`: decodes and codes blocks ahead of use on worker threads.

Work is bounded (`max_pending`): whoever submits more waits. An error in a worker is raised where the result is used.
When the workers are gone the reconstructor says so (`failure`) and goes on in the calling thread; nothing is lost.
On CUDA workers have streams of their own; arguments and results pass between streams by events (`spectralquant.streams`).
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from spectralquant.streams import Handover

STOP = object()
LOOK_AGAIN_S = 0.1


class Task:
    """A result that is being made; `result()` waits for it, or makes it here when no worker has begun.

    in_order: leave it to the workers as long as there are any, so that tasks are done one after the other.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        device: torch.device,
        workers: list[threading.Thread],
        in_order: bool = False,
    ) -> None:
        self._function: Callable[..., Any] | None = function
        self._given: Handover | None = Handover(arguments, device)
        self._prepared: Handover | None = None
        self._error: BaseException | None = None
        self._device, self._workers, self._in_order = device, workers, in_order
        self._claim = threading.Lock()
        self._done = threading.Event()

    def run(self) -> None:
        """Compute the result once, on the current stream; later calls return at once."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._prepared = Handover(self._function(*self._given.take()), self._device)
        except BaseException as error:
            self._error = error
        finally:
            self._function = self._given = None
            self._done.set()

    def result(self) -> Any:
        """The value, ready for the current stream.

        Raises:
            whatever the function raised.
        """
        if not self._in_order or not any_alive(self._workers):
            self.run()
        while not self._done.wait(LOOK_AGAIN_S):
            if not any_alive(self._workers):
                self.run()
        if self._error is not None:
            raise self._error
        return self._prepared.take()


class AsyncReconstructor:
    """Worker threads with a bounded queue, started on first use and stopped when this object goes.

    On a CPU each worker computes with one thread: a second team of OpenMP threads would slow every operation of the
    model down.
    """

    def __init__(self, threads: int = 1, max_pending: int = 32, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.synchronous = 0
        self._count = threads
        self._errors: list[BaseException] = []
        self._queue: queue.Queue[Any] = queue.Queue(max_pending)
        self._threads: list[threading.Thread] = []

    @property
    def failure(self) -> BaseException | None:
        """What ended a worker, if something did."""
        return self._errors[0] if self._errors else None

    def submit(self, function: Callable[..., Any], *arguments: Any, in_order: bool = False) -> Task:
        """Queue `function(*arguments)`; blocks while the queue is full (back-pressure). in_order: see `Task`."""
        self.start()
        task = Task(function, arguments, self.device, self._threads, in_order)
        while self.alive:
            try:
                self._queue.put(task, timeout=LOOK_AGAIN_S)
                return task
            except queue.Full:
                continue
        self.synchronous += 1
        return task

    def start(self) -> None:
        """Start the workers, once."""
        if self._threads:
            return
        ready = threading.Barrier(self._count + 1)
        arguments = (self._queue, self._errors, ready)
        self._threads = [
            threading.Thread(target=_work, args=(*arguments, worker_stream(self.device, number)), daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
        ready.wait()
        torch.set_num_threads(torch.get_num_threads())  # what the workers set for themselves is not for new threads

    @property
    def alive(self) -> bool:
        """Whether any worker is left."""
        return any_alive(self._threads)

    def close(self) -> None:
        """Stop the workers after the queued work."""
        self._stop()
        for thread in self._threads:
            thread.join()

    def _stop(self) -> None:
        for thread in self._threads:
            while thread.is_alive():
                try:
                    self._queue.put(STOP, timeout=LOOK_AGAIN_S)
                    break
                except queue.Full:
                    continue

    def __del__(self) -> None:
        self._stop()


def any_alive(threads: list[threading.Thread]) -> bool:
    """Whether one of the threads still runs."""
    return any(t.is_alive() for t in threads)


@functools.cache
def worker_stream(device: torch.device, number: int) -> torch.cuda.Stream | None:
    """The stream of every reconstructor's worker of this number: libraries keep workspaces a stream (32 MB on a Hopper
    GPU), so that one for each cache would add up.
    """
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _work(
    tasks: queue.Queue[Any],
    errors: list[BaseException],
    ready: threading.Barrier,
    stream: torch.cuda.Stream | None,
) -> None:
    """A worker; it holds no reference to its reconstructor, so that dropping that ends it."""
    try:
        torch.set_num_threads(1)
        ready.wait()
        with torch.cuda.stream(stream):
            while (task := tasks.get()) is not STOP:
                task.run()
                del task
    except BaseException as error:
        errors.append(error)
