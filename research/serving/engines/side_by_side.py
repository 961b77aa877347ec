"""Work that is shared out over the GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

from research.serving.engines.cards import VISIBLE, cards

Variables = dict[str, str]
T = TypeVar("T")


def side_by_side(tasks: Mapping[str, Callable[[Variables], T]], together: int = 1) -> dict[str, T]:
    """What each task returns, in their order; a task gets the variables of a process's environment that name its GPU (none where there
    is one GPU or none). `together` tasks share a GPU at once. Tasks begin in order, each as soon as a GPU is free.

    After one that fails no other begins; those that have begun come to their end.

    Raises:
        Exception: what the first task that failed raised.
    """
    gpus, failed = cards(), Event()
    free: SimpleQueue[str] = SimpleQueue()
    for gpu in (gpus or [""]) * together:
        free.put(gpu)

    def work(task: Callable[[Variables], T]) -> T | None:
        if failed.is_set():
            return None
        gpu = free.get()
        try:
            return task({VISIBLE: gpu} if len(gpus) > 1 else {})
        except BaseException:
            failed.set()
            raise
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(max_workers=free.qsize()) as pool:
        futures = {name: pool.submit(work, task) for name, task in tasks.items()}
    if error := next((e for f in futures.values() if (e := f.exception()) is not None), None):
        raise error
    return {name: done for name, future in futures.items() if (done := future.result()) is not None}
