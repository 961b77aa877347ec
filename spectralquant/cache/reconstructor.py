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
    """Worker threads with a bounded queue. On CUDA every worker has a stream of its own and waits for it."""

    def __init__(self, threads: int = 1, max_pending: int = 32, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.failure: BaseException | None = None
        self.synchronous = 0
        self._queue: queue.Queue[Any] = queue.Queue(max_pending)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Task:
        """Queue `function(*arguments)`; blocks while the queue is full (back-pressure)."""
        task = Task(function, arguments)
        while self.alive:
            try:
                self._queue.put(task, timeout=0.1)
                return task
            except queue.Full:
                continue
        self.synchronous += 1
        return task

    @property
    def alive(self) -> bool:
        """Whether any worker is left."""
        return any(t.is_alive() for t in self._threads)

    def close(self) -> None:
        """Stop the workers after the queued work."""
        for thread in self._threads:
            if thread.is_alive():
                self._queue.put(STOP)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            while (task := self._queue.get()) is not STOP:
                if stream is None:
                    task.run()
                else:
                    with torch.cuda.stream(stream):
                        task.run()
                        stream.synchronize()
                del task
        except BaseException as error:
            self.failure = error
