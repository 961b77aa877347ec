"""Races between streams, provoked: one stream is put to sleep, and what should wait for it must wait.

Every test fails when the wait or the note to the allocator that it is about is taken away. Sizes are above the
allocator's small blocks, and everything is run once before, so that no first-time allocation or kernel load (which
would make the device wait as a whole) hides a race.
"""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from spectralquant.cache.compress.reconstructor import AsyncReconstructor
from spectralquant.cache.pool import PagePart, SpectralBufferPool
from spectralquant.streams import Handover, OneAtATime, as_caller

pytestmark = pytest.mark.gpu
N = 1 << 20
CYCLES = 200_000_000  # about a tenth of a second
GPU = "cuda"


MANY = 16  # blocks that together take all that the allocator has free, so that one of them lands where it should not


def sleep():
    """Let the current stream do nothing for a while; the host goes on."""
    torch.cuda._sleep(CYCLES)


def use_memory():
    """A few blocks in the current stream's part of the allocator, and every kernel loaded."""
    blocks = [torch.zeros(N, device=GPU) for _ in range(4)]
    for block in blocks:
        block.fill_(1).add(1).clone()
    assert bool((torch.full((N,), 7.0, device=GPU) == 7).all())
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()


def begun(worker, function, *arguments):
    """A task that the worker (not this thread) has begun."""
    started = threading.Event()

    def run(*given):
        started.set()
        return function(*given)

    task = worker.submit(run, *arguments)
    assert started.wait(30)
    return task


def wait_until_freed(reference):
    end = time.monotonic() + 10
    while reference() is not None:
        assert time.monotonic() < end, "something still holds the tensor"
        time.sleep(0.001)


def all_are(tensor, value):
    return bool((tensor == value).all())


@pytest.fixture
def worker():
    made = AsyncReconstructor(device=GPU)
    torch.cuda.empty_cache()
    use_memory()
    begun(made, use_memory).result()
    yield made
    torch.cuda.synchronize()
    made.close()


@pytest.fixture
def side():
    stream = torch.cuda.Stream()
    torch.cuda.empty_cache()
    use_memory()
    with torch.cuda.stream(stream):
        use_memory()
    yield stream
    torch.cuda.synchronize()


def late_ones():
    out = torch.zeros(N, device=GPU)
    sleep()
    return out.fill_(1)


def test_a_result_is_finished_before_it_is_read(worker):
    assert all_are(begun(worker, late_ones).result() + 0, 1)


@dataclass(frozen=True)
class Result:
    pair: tuple
    table: dict


def test_results_in_dataclasses_tuples_and_dictionaries_are_kept_for_their_reader(worker):
    gate = threading.Event()

    def make():
        return Result((torch.ones(N, device=GPU), None), {"x": [torch.ones(N, device=GPU)]})

    def overwrite():
        gate.wait(30)
        return [torch.full((N,), 7.0, device=GPU) for _ in range(MANY)]

    first = begun(worker, make)
    second = begun(worker, overwrite)
    result = first.result()
    sleep()
    seen = [result.pair[0].clone(), result.table["x"][0].clone()]
    references = [weakref.ref(result.pair[0]), weakref.ref(result.table["x"][0])]
    del result, first
    for reference in references:
        wait_until_freed(reference)
    gate.set()
    second.result()
    assert all(all_are(x, 1) for x in seen)


def test_arguments_are_finished_before_the_worker_reads_them(worker):
    x = torch.zeros(N, device=GPU)
    sleep()
    x.fill_(1)
    assert all_are(begun(worker, torch.clone, x).result(), 1)


def test_arguments_that_are_freed_here_are_not_written_before_the_worker_has_read_them(worker):
    def read(given):
        sleep()
        return given.clone()

    x = torch.ones(N, device=GPU)
    task = begun(worker, read, x)
    reference = weakref.ref(x)
    del x
    wait_until_freed(reference)
    others = [torch.full((N,), 7.0, device=GPU) for _ in range(MANY)]
    assert all_are(task.result(), 1)
    assert all(all_are(x, 7) for x in others)


def test_a_task_that_is_done_by_another_stream_waits_for_its_arguments(worker, side):
    gate = threading.Event()
    blocked = begun(worker, gate.wait, 30)
    x = torch.zeros(N, device=GPU)
    torch.cuda.synchronize()
    sleep()
    x.fill_(1)
    task = worker.submit(torch.clone, x)
    with torch.cuda.stream(side):
        seen = task.result() + 0
        assert all_are(seen, 1)
    gate.set()
    blocked.result()


def test_one_result_for_two_streams(worker, side):
    task = begun(worker, late_ones)
    with torch.cuda.stream(side):
        there = task.result() + 0
    here = task.result() + 0
    assert all_are(here, 1)
    side.synchronize()
    assert all_are(there, 1)


def test_many_tasks_of_three_workers_come_back_whole():
    worker = AsyncReconstructor(threads=3, device=GPU)
    use_memory()
    tasks = []
    for i in range(60):
        x = torch.full((N // 8,), float(i), device=GPU)
        tasks.append(worker.submit(lambda given: (torch.cuda._sleep(2_000_000), given * 2)[1], x))
        del x
    for i, task in enumerate(tasks):
        assert all_are(task.result(), 2 * i)
    worker.close()


def test_an_error_of_a_worker_leaves_its_stream_usable(worker):
    def fail():
        sleep()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        begun(worker, fail).result()
    assert all_are(begun(worker, late_ones).result() + 0, 1)


def test_one_at_a_time_orders_streams(side):
    turn, total = OneAtATime(torch.device(GPU)), torch.zeros(N, device=GPU)
    torch.cuda.synchronize()
    with torch.cuda.stream(side), turn:
        sleep()
        total += 1
    with turn:
        total *= 3
    assert all_are(total, 3)


def test_a_handover_on_its_own_stream_is_free(side):
    with torch.cuda.stream(side):
        made = Handover(late_ones(), torch.device(GPU))
        assert not side.query()
        made.take()
        assert not side.query()
    assert all_are(made.take(), 1)


def test_threads_work_on_the_callers_stream(side):
    x = torch.zeros(N, device=GPU)
    torch.cuda.synchronize()
    sleep()  # the stream that threads have by themselves
    with torch.cuda.stream(side), ThreadPoolExecutor(2) as pool:
        list(pool.map(as_caller(lambda i: x[i * N // 2 : (i + 1) * N // 2].fill_(1), torch.device(GPU)), range(2)))
        assert all_are(x, 1)


# Pages


def test_a_page_is_not_written_while_another_stream_reads_it(side):
    pool = SpectralBufferPool(GPU)
    page = pool.allocate(N)
    page.data.fill_(1)
    place = page.data.data_ptr()
    sleep()
    seen = page.data.clone()
    del page
    with torch.cuda.stream(side):
        again = pool.allocate(N)
        assert again.data.data_ptr() == place
        again.data.fill_(7)
    side.synchronize()
    assert all_are(seen, 1)


def test_a_new_slab_is_zero_before_another_stream_writes_it(side):
    pool = SpectralBufferPool(GPU)
    warm = pool.allocate(N)
    del warm
    pool.trim()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        sleep()
        first = pool.allocate(N)
    second = pool.allocate(N)
    second.data.fill_(3)
    side.synchronize()
    assert all_are(second.data, 3) and all_are(first.data, 0)


@pytest.mark.parametrize("end", ["trim", "drop"])
def test_a_slab_is_kept_until_every_reader_is_done(side, end):
    pool = SpectralBufferPool(GPU)
    with torch.cuda.stream(side):
        page = pool.allocate(N)
        page.data.fill_(1)
    torch.cuda.synchronize()
    sleep()
    seen = page.data.clone()
    del page
    if end == "trim":
        assert pool.trim() == N
    else:
        del pool
    with torch.cuda.stream(side):
        others = [torch.full((8 * N,), 7, dtype=torch.uint8, device=GPU) for _ in range(MANY)]
    side.synchronize()
    assert all_are(seen, 1)
    assert all(all_are(x, 7) for x in others)


def test_a_host_page_is_not_written_while_it_is_copied():
    pool = SpectralBufferPool("cpu", pinned=True)
    page = pool.allocate(N)
    assert page.data.is_pinned()
    page.data.fill_(1)
    use_memory()
    sleep()
    seen = pool.gather([page], PagePart(0, 1, N, 0, N), torch.device(GPU))
    del page
    pool.allocate(N).data.fill_(7)
    assert all_are(seen, 1)


def test_pages_of_one_stream_cost_no_wait(side):
    """A pool that one stream uses never makes that stream or the host wait."""
    pool = SpectralBufferPool(GPU)
    with torch.cuda.stream(side):
        page = pool.allocate(N)
        sleep()
        page.data.fill_(1)
        del page
        again = pool.allocate(N)
        again.data.fill_(2)
        assert not side.query()
    side.synchronize()
    assert all_are(again.data, 2)
