"""The page pool: nothing lost, nothing leaked, limits kept."""

import random
import threading
import time

import pytest
import torch

from spectralquant.cache.pool import SLAB_PAGES, PagePart, SpectralBufferPool
from spectralquant.errors import InputError

STRESS_SECONDS = 15


def test_pages_are_reused_and_slabs_given_back():
    pool = SpectralBufferPool()
    pages = [pool.allocate(256) for _ in range(20)]
    assert pool.stats().allocated == 24 * 256
    assert pool.stats().used == 20 * 256
    assert pool.stats().fragmentation == pytest.approx(4 / 24)
    keep = pages[0]
    del pages
    assert pool.stats().used == 256
    again = [pool.allocate(256) for _ in range(23)]
    assert pool.stats().allocated == 24 * 256
    del again
    assert pool.trim() == 23 * 256
    assert pool.stats().allocated == 256, "the first slab, in which a page is kept"
    del keep
    assert pool.stats().used == 0


def test_few_pages_waste_few():
    pool, pages = SpectralBufferPool(), []
    for count in range(1, 30):
        pages.append(pool.allocate(64))
        spare = pool.stats().allocated // 64 - count
        assert spare <= min(count - 1, SLAB_PAGES - 1)


def test_gather_keeps_order_over_slabs():
    pool = SpectralBufferPool()
    pages = [pool.allocate(12) for _ in range(20)]
    for i, page in enumerate(pages):
        page.data.fill_(i)
    order = [19, 3, 4, 5, 11, 0]
    found = pool.gather([pages[i] for i in order], PagePart(0, 3, 4, 1, 3), torch.device("cpu"))
    assert found.shape == (6, 3, 2)
    assert found[:, 0, 0].tolist() == order


def test_the_limit_is_kept_and_named():
    pool = SpectralBufferPool(max_bytes=8 * 100)
    pages = [pool.allocate(100) for _ in range(8)]
    with pytest.raises(InputError, match="limit of 800"):
        pool.allocate(100)
    del pages[3]
    pool.allocate(100)


@pytest.mark.slow
def test_eight_threads_for_a_while():
    """Every page still holds what its owner wrote, and all pages come back."""
    pool = SpectralBufferPool()
    stop, errors = time.monotonic() + STRESS_SECONDS, []

    def work(seed: int) -> None:
        chooser = random.Random(seed)
        mine: list[tuple[int, object]] = []
        try:
            while time.monotonic() < stop:
                if len(mine) < 40 and chooser.random() < 0.55:
                    page = pool.allocate(chooser.choice((64, 640, 4096)))
                    stamp = chooser.randrange(256)
                    page.data.fill_(stamp)
                    mine.append((stamp, page))
                elif mine:
                    stamp, page = mine.pop(chooser.randrange(len(mine)))
                    assert bool((page.data == stamp).all())
                if chooser.random() < 0.01:
                    pool.trim()
            for stamp, page in mine:
                assert bool((page.data == stamp).all())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert pool.stats().used == 0
    pool.trim()
    assert pool.stats().allocated == 0


def test_a_pool_made_in_inference_mode_serves_outside():
    with torch.inference_mode():
        pool = SpectralBufferPool()
        page = pool.allocate(8)
        page.data.fill_(1)
    page.data.fill_(2)
    assert page.data.tolist() == [2] * 8
