"""Work ahead of use: order, back-pressure, errors, and dead workers."""

import threading
import time
import weakref

import pytest
import torch
from conftest import profile_of

from spectralquant import SpectralCache
from spectralquant.cache.compress.reconstructor import AsyncReconstructor
from spectralquant.errors import PacketError


def test_results_come_back_in_the_order_they_are_asked_for():
    worker = AsyncReconstructor(threads=3)
    tasks = [worker.submit(lambda i=i: i * i) for i in range(200)]
    assert [t.result() for t in tasks] == [i * i for i in range(200)]
    worker.close()


def test_back_pressure_makes_the_submitter_wait():
    gate = threading.Event()
    worker = AsyncReconstructor(threads=1, max_pending=2)
    for _ in range(3):
        worker.submit(gate.wait)
    done = threading.Event()
    late = threading.Thread(target=lambda: (worker.submit(gate.wait), done.set()))
    late.start()
    assert not done.wait(0.3)
    gate.set()
    assert done.wait(5)
    late.join()
    worker.close()


def test_a_dropped_cache_ends_its_workers_and_frees_its_pages():
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="cold", ages={}, background=False)
    hot = SpectralCache(loaded.model, profile, tier="hot")
    ids = torch.randint(5, 500, (1, 400))
    with torch.no_grad():
        for which in (cache, hot):
            loaded.model(input_ids=ids, past_key_values=which)
            loaded.model(input_ids=ids[:, :1], past_key_values=which)
    threads, pool = cache.reconstructor._threads, hot.pool
    assert threads and pool.stats().used
    assert not hot.reconstructor._threads, "a tier that needs no worker starts none"
    del cache, hot, which
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert pool.stats().used == 0


def test_workers_leave_the_callers_threads_alone():
    before = torch.get_num_threads()
    worker = AsyncReconstructor()
    assert worker.submit(torch.get_num_threads).result() in (1, before)
    fresh: list[int] = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before == fresh[0]
    worker.close()


def test_an_error_is_raised_where_the_result_is_used():
    worker = AsyncReconstructor()

    def fail():
        raise PacketError("damaged")

    task = worker.submit(fail)
    with pytest.raises(PacketError, match="damaged"):
        task.result()
    assert worker.submit(lambda: 1).result() == 1
    worker.close()


def test_a_damaged_block_is_reported_by_the_forward_pass():
    loaded, profile = profile_of("llama")
    cache = SpectralCache(loaded.model, profile, tier="cold", background=False)
    ids = torch.randint(5, 500, (1, 400))
    with torch.no_grad():
        loaded.model(input_ids=ids, past_key_values=cache)
        block = cache.state.sequences[0][0]
        cache.state.sequences[0][0] = cache.tiers["cold"].from_bytes(block.payload[:-9], block.start, block.tokens)
        with pytest.raises(PacketError):
            loaded.model(input_ids=ids[:, :1], past_key_values=cache)


@pytest.mark.slow
def test_a_dead_worker_is_reported_and_the_cache_goes_on():
    loaded, profile = profile_of("llama")
    ids = torch.randint(5, 500, (1, 400))
    caches = [SpectralCache(loaded.model, profile, tier="cold") for _ in range(2)]

    class Poison:
        def run(self):
            raise SystemError("worker killed")

    caches[1].reconstructor.start()
    caches[1].reconstructor._queue.put(Poison())
    while caches[1].reconstructor.alive:
        time.sleep(0.01)
    outputs = []
    for cache in caches:
        with torch.no_grad():
            loaded.model(input_ids=ids, past_key_values=cache)
            outputs.append(
                [loaded.model(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(180)]
            )
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert "worker killed" in caches[1].stats().reconstructor_failure
    assert caches[0].stats().reconstructor_failure is None
    assert caches[1].reconstructor.synchronous > 0


def test_ordered_tasks_are_left_to_the_workers():
    gate, done, order = threading.Event(), threading.Event(), []
    worker = AsyncReconstructor(threads=1)
    worker.submit(gate.wait, 10)
    tasks = [worker.submit(order.append, i, in_order=True) for i in range(20)]
    waiting = threading.Thread(target=lambda: (tasks[19].result(), done.set()))
    waiting.start()
    assert not done.wait(0.3) and not order, "the waiting thread did the task itself"
    gate.set()
    assert done.wait(5)
    waiting.join()
    assert order == list(range(20))
    worker.close()


def test_ordered_tasks_are_done_here_when_the_workers_are_gone():
    worker = AsyncReconstructor(threads=1)
    worker.start()
    worker.close()
    assert worker.submit(lambda: 3, in_order=True).result() == 3
    assert worker.synchronous == 1


def test_a_task_lets_go_of_its_arguments():
    worker = AsyncReconstructor()
    x = torch.zeros(4)
    reference = weakref.ref(x)
    task = worker.submit(lambda given: int(given.sum()), x)
    del x
    assert task.result() == 0
    assert reference() is None
    worker.close()
