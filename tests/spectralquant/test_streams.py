"""What passes between streams, as far as a CPU can tell; races on a GPU are provoked in cache/test_streams_gpu.py."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from spectralquant.streams import Handover, OneAtATime, as_caller, tensors_in, use_here

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Holder:
    one: object
    two: object = None


def test_tensors_are_found_wherever_they_are():
    t = [torch.zeros(i + 1) for i in range(5)]
    value = Holder((t[0], [t[1], None, "x"]), {"a": t[2], "b": Holder(t[3], (t[4], 7))})
    assert [len(x) for x in tensors_in(value)] == [1, 2, 3, 4, 5]
    assert not list(tensors_in((Holder, 3, b"bytes", None)))


def test_on_a_cpu_a_handover_is_the_value():
    value = (torch.ones(2), 3)
    assert Handover(value, CPU).take() is value
    use_here(value)


def test_threads_take_over_the_callers_modes():
    with torch.inference_mode():
        x = torch.zeros(4)
        with ThreadPoolExecutor(2) as pool:
            with pytest.raises(RuntimeError, match="inference"):
                list(pool.map(lambda i: x[i].fill_(i), range(4)))
            list(pool.map(as_caller(lambda i: x[i].fill_(i), CPU), range(4)))
    assert x.tolist() == [0, 1, 2, 3]


def test_one_at_a_time_is_a_lock():
    turn, inside, most = OneAtATime(CPU), [], []

    def work():
        for _ in range(200):
            with turn:
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 800
    with pytest.raises(ValueError), turn:
        raise ValueError
    with turn:
        pass
