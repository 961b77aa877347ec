"""A store never answers wrongly and never raises: whatever happened to its files is a miss."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

import pytest
from filelock import FileLock

from spectralquant.errors import InputError
from spectralquant.integrations.store import PacketStore
from spectralquant.integrations.store.record import sealed
from spectralquant.integrations.store.store import LOCK

MB = 1 << 20


def key(i: int) -> bytes:
    return i.to_bytes(32, "big") + b"\0\0\0\0"


def files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.sqchunk"))


@pytest.fixture
def store(tmp_path):
    return PacketStore(tmp_path / "store", "model-a", 64 * MB)


def test_what_was_saved_comes_back_in_another_store_object(store, tmp_path):
    packet = os.urandom(10_000)
    assert store.save(key(1), packet, raw_bytes=200_000)
    other = PacketStore(tmp_path / "store", "model-a", 64 * MB)
    assert other.lookup(key(1)) and other.load(key(1)) == packet and key(1) in other
    assert not other.lookup(key(2)) and other.load(key(2)) is None and key(2) not in other
    tally = other.tally
    assert (tally.lookups, tally.hits, tally.loads, tally.lost, tally.hit_share) == (2, 1, 2, 1, 0.5)
    assert store.tally.ratio == pytest.approx(200_000 / store.disk_usage()[1])


def test_an_empty_packet_is_a_packet(store):
    assert store.save(key(1), b"", 1) and store.lookup(key(1)) and store.load(key(1)) == b""


def flip(where: float):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(len(data) - 1, int(where * len(data)))] ^= 1
        path.write_bytes(data)

    return damage


def foreign_key(path: Path) -> None:
    path.write_bytes(sealed(key(7), "model-a", b"x" * 5000, 1))


def foreign_model(path: Path) -> None:
    path.write_bytes(sealed(key(1), "model-b", b"x" * 5000, 1))


DAMAGES = {
    **{f"bit at {share}": flip(share) for share in (0.0, 0.001, 0.005, 0.015, 0.02, 0.5, 0.995, 1.0)},
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[:2500]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(5124)),
    "foreign key": foreign_key,
    "foreign model": foreign_model,
    "another program's file": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(9000)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_a_miss_and_the_file_goes(store, tmp_path, damage):
    store.save(key(1), os.urandom(5000), 1)
    (path,) = files(tmp_path)
    damage(path)
    assert not store.lookup(key(1))
    assert store.tally.damaged == 1 and not path.exists()
    assert store.save(key(1), b"new", 1) and store.load(key(1)) == b"new"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_between_lookup_and_load_is_a_miss(store, tmp_path, damage):
    store.save(key(1), os.urandom(5000), 1)
    assert store.lookup(key(1))
    damage(files(tmp_path)[0])
    assert store.load(key(1)) is None and store.tally.lost == 1


def test_a_file_that_is_a_folder_or_a_dead_link_is_a_miss(store, tmp_path):
    store.save(key(1), b"abc", 1)
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    assert not store.lookup(key(1)) and store.load(key(1)) is None and not store.save(key(1), b"abc", 1)
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    assert not store.lookup(key(1))
    assert store.save(key(1), b"abc", 1) and store.lookup(key(1))


def test_a_store_whose_folder_is_taken_away_misses_and_goes_on(store, tmp_path):
    store.save(key(1), b"abc", 1)
    (tmp_path / "store").rename(tmp_path / "gone")
    assert not store.lookup(key(1)) and store.disk_usage() == (0, 0)
    assert store.save(key(2), b"abc", 1) and store.lookup(key(2))


def test_models_share_a_folder_and_no_packets(store, tmp_path):
    other = PacketStore(tmp_path / "store", "model-b", 64 * MB)
    store.save(key(1), b"a", 1)
    assert not other.lookup(key(1))
    other.save(key(1), b"b", 1)
    assert (store.load(key(1)), other.load(key(1))) == (b"a", b"b")
    assert store.disk_usage()[0] == 2


def test_it_evicts_as_a_plain_lru_does(tmp_path):
    """A random trace over a store of 40 packets hits as often as a least-recently-used list of 38 to 40 entries."""
    size, packets = 8192 - 256, 40
    store = PacketStore(tmp_path, "m", packets * 8192)
    plain: dict[int, OrderedDict[int, None]] = {38: OrderedDict(), 40: OrderedDict()}
    hits = dict.fromkeys([*plain, 0], 0)
    draw = random.Random(0)
    for _ in range(1500):
        i = min(int(draw.paretovariate(0.6)), 400)
        for capacity, recent in plain.items():
            hits[capacity] += i in recent
            recent[i] = None
            recent.move_to_end(i)
            if len(recent) > capacity:
                recent.popitem(last=False)
        hits[0] += store.lookup(key(i)) or not store.save(key(i), bytes(size), 1)
        assert store.disk_usage()[1] <= packets * 8192
    assert hits[38] - 15 <= hits[0] <= hits[40]
    assert store.tally.evicted > 100


def test_the_budget_is_that_of_all_models_in_the_folder(tmp_path):
    stores = [PacketStore(tmp_path, name, MB) for name in ("a", "b")]
    for i in range(400):
        stores[i % 2].save(key(i), bytes(8000), 1)
    assert stores[0].disk_usage()[1] <= 1.02 * MB
    assert stores[1].lookup(key(399)) and not stores[0].lookup(key(0))


def test_the_budget_holds_while_another_process_is_slow_to_make_room(tmp_path):
    """Whoever has spent its share waits until it can count anew; it does not write on unseen."""
    store = PacketStore(tmp_path, "m", MB)
    writer = threading.Thread(target=lambda: [store.save(key(i), bytes(100_000), 1) for i in range(60)])
    with FileLock(tmp_path / LOCK):
        writer.start()
        time.sleep(0.5)
        held = sum(path.stat().st_size for path in files(tmp_path))
    writer.join(timeout=30)
    assert held <= 1.1 * MB and not writer.is_alive()
    assert store.tally.saves == 60 and store.tally.evicted >= 50
    assert store.disk_usage()[1] <= MB and store.lookup(key(59))


def test_a_packet_larger_than_the_store_is_not_kept(tmp_path):
    store = PacketStore(tmp_path, "m", 100_000)
    store.save(key(1), bytes(50_000), 1)
    assert not store.save(key(2), bytes(200_000), 1)
    assert store.lookup(key(1)) and store.tally.failed_saves == 1


def test_a_smaller_budget_takes_hold_at_the_next_start(store, tmp_path):
    for i in range(20):
        store.save(key(i), bytes(100_000), 1)
    assert PacketStore(tmp_path / "store", "model-a", MB).disk_usage()[1] <= MB
    assert store.lookup(key(19)) and not store.lookup(key(0))


@pytest.mark.parametrize("budget", [0, -5])
def test_no_budget_is_refused(tmp_path, budget):
    with pytest.raises(InputError, match="positive"):
        PacketStore(tmp_path, "m", budget)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        PacketStore(tmp_path / "file" / "store", "m", MB)


WRITER = """
import os, sys
from spectralquant.integrations.store import PacketStore
root, first, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store = PacketStore(root, "m", 3 << 20)
print("ready", flush=True)
wrong = 0
for n in range(count):
    i = first + (n * 7 + seed) % 60
    key = i.to_bytes(36, "big")
    packet = store.load(key)
    wrong += packet is not None and packet != bytes([i % 251]) * (70_000 + i)
    store.save(key, bytes([i % 251]) * (70_000 + i), 1)
    wrong += store.disk_usage()[1] > 1.1 * (3 << 20)
print(wrong, store.tally.hits, flush=True)
"""


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_two_processes_on_one_folder_read_no_wrong_packet(tmp_path):
    writers = [start(tmp_path, first, 300, first) for first in (0, 30)]
    outputs = [writer.communicate(timeout=100)[0].split() for writer in writers]
    assert [words[:2] for words in outputs] == [["ready", "0"]] * 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_look_between_making_a_file_and_locking_it_costs_no_packet(store, tmp_path, monkeypatch):
    """Another process that looks at that moment takes the writer for dead, and removes its file."""
    import fcntl

    lock, looks = fcntl.flock, []

    def looked_at_first(handle, operation):
        if operation == fcntl.LOCK_EX and len(looks) < 3:
            looks.append(list(tmp_path.rglob("*.tmp")))
            PacketStore(tmp_path / "store", "model-a", MB).disk_usage()
        return lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", looked_at_first)
    assert store.save(key(1), b"abc", 1)
    assert [len(files) for files in looks] == [1, 1, 1]
    assert store.load(key(1)) == b"abc" and store.tally.failed_saves == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_process_killed_while_saving_leaves_no_wrong_packet_and_nothing_behind(tmp_path):
    for delay in (0.0, 0.01, 0.03, 0.06):
        writer = start(tmp_path, 0, 100_000, 1)
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    store = PacketStore(tmp_path, "m", 3 << 20)
    assert not list(tmp_path.rglob("*.tmp"))
    for i in range(60):
        packet = store.load(i.to_bytes(36, "big"))
        assert packet is None or packet == bytes([i % 251]) * (70_000 + i)
    assert store.tally.damaged == 0


def test_a_half_written_file_of_a_dead_process_goes_and_that_of_a_live_one_stays(store, tmp_path):
    import fcntl

    store.save(key(1), b"abc", 1)
    (path,) = files(tmp_path)
    dead, live = (path.with_name(f"{path.name}.{name}.tmp") for name in ("dead", "live"))
    dead.write_bytes(b"half")
    with open(live, "xb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        store.disk_usage()
        assert live.exists() and not dead.exists()


FULL = """
import resource, sys
from spectralquant.integrations.store import PacketStore
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
store = PacketStore(sys.argv[1], "m", 1 << 20)
print(store.save(b"a", bytes(10_000), 1), store.save(b"b", bytes(50_000), 1), store.load(b"b"), store.tally.failed_saves)
"""


def test_a_disk_that_takes_no_more_is_a_packet_not_kept(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.split() == ["True", "False", "None", "1"]
    assert len(list(tmp_path.rglob("*.*chunk*"))) == 1
