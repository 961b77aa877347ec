"""`AsyncReconstructor`: decodes blocks ahead of use on worker threads.

Work is bounded (`max_pending`): whoever submits more waits. An error in a worker is raised where the result is used.
When the workers are gone the reconstructor says so (`failure`) and goes on in the calling thread; nothing is lost.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

STOP = object()


class Task:
    """A result that is being made; `result()` waits for it, or makes it here when no worker has begun."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self._claim = threading.Lock()
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Compute the result once; later calls return at once."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._value = self.function(*self.arguments)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def result(self) -> Any:
        """The value.

        Raises:
            whatever the function raised.
        """
        self.run()
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value


class AsyncReconstructor:
    """Worker threads with a bounded queue, started on first use and stopped when this object goes.

    On a CPU each worker computes with one thread: a second team of OpenMP threads would slow every operation of the
    model down. On CUDA every worker has a stream of its own and waits for it.
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

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Task:
        """Queue `function(*arguments)`; blocks while the queue is full (back-pressure)."""
        task = Task(function, arguments)
        self.start()
        while self.alive:
            try:
                self._queue.put(task, timeout=0.1)
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
        arguments = (self._queue, self._errors, self.device, ready)
        self._threads = [threading.Thread(target=_work, args=arguments, daemon=True) for _ in range(self._count)]
        for thread in self._threads:
            thread.start()
        ready.wait()
        torch.set_num_threads(torch.get_num_threads())  # what the workers set for themselves is not for new threads

    @property
    def alive(self) -> bool:
        """Whether any worker is left."""
        return any(t.is_alive() for t in self._threads)

    def close(self) -> None:
        """Stop the workers after the queued work."""
        self._stop()
        for thread in self._threads:
            thread.join()

    def _stop(self) -> None:
        for thread in self._threads:
            while thread.is_alive():
                try:
                    self._queue.put(STOP, timeout=0.1)
                    break
                except queue.Full:
                    continue

    def __del__(self) -> None:
        self._stop()


def _work(tasks: queue.Queue[Any], errors: list[BaseException], device: torch.device, ready: threading.Barrier) -> None:
    """A worker; it holds no reference to its reconstructor, so that dropping that ends it."""
    try:
        torch.set_num_threads(1)
        ready.wait()
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        while (task := tasks.get()) is not STOP:
            if stream is None:
                task.run()
            else:
                with torch.cuda.stream(stream):
                    task.run()
                    stream.synchronize()
            del task
    except BaseException as error:
        errors.append(error)
