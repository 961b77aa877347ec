"""Which engines `serve_check` starts, what it concludes from their reports, and processes that wait for orders; no engine."""

from __future__ import annotations

import dataclasses
import json

import pytest

from spectralquant.errors import InputError
from spectralquant.integrations.serve_check import check as module
from spectralquant.integrations.serve_check import process, spares
from spectralquant.integrations.serve_check.check import ServeCheck, engines, serve_check
from spectralquant.integrations.serve_check.orders import Order, order_of
from spectralquant.integrations.serve_check.process import run
from spectralquant.integrations.serve_check.spares import Spares
from spectralquant.integrations.store import StoreTally

CHECK = ServeCheck("m", "profile", "cuda", prompts=2, long=(8192,), long_prompts=2, rounds=3, texts=False, trace=0)


class FakeEngines:
    """Reports of engines: what is computed takes 8 seconds, CPU memory 1, files 4, ours 2."""

    def __init__(self) -> None:
        self.orders: dict[str, Order] = {}
        self.fails: set[str] = set()

    def __call__(self, order, folder, name, starter=None):
        if name in self.fails:
            raise InputError(f"the engine of {name} ended")
        self.orders[name] = order_of(json.loads(json.dumps(dataclasses.asdict(order))))
        steps, done = {}, 0
        for step in order.steps:
            count = step.prompts.count * step.rounds if step.prompts else 0
            seconds = 8.0 if order.transfer is None else 2.0 if name != "vllm-own" else 4.0 if step.cold else 1.0
            done += count
            tally = StoreTally(
                lookups=done + 1, hits=done + 1, raw_bytes=30, stored_bytes=3, restores=done, read_after_s=0.1 * done
            )
            steps[step.name] = {
                "seconds": [seconds] * count,
                "cached_tokens": [8] * count,
                "prompt_tokens": [10] * count,
                "tokens_per_s": [100.0],
                **({"tally": dataclasses.asdict(tally)} if name.startswith(("lossless", "spectral")) else {}),
            }
        last = steps[order.steps[-1].name].get("tally")
        return {"steps": steps, "tally": last, "facts": {"vllm": "0", "start_s": 1.0, "pages": 5}}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    made = FakeEngines()
    monkeypatch.setattr(module, "run", made)
    monkeypatch.setattr(module, "require_vllm", lambda: None)
    monkeypatch.setattr(spares, "CORES", 1 << 20)
    return made


def measured(check, tmp_path, keep=None):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    check = dataclasses.replace(check, model=str(tmp_path))
    return serve_check(check, lambda _: None, tmp_path, keep=keep)


def test_one_engine_serves_vllms_own_tiers_one_after_the_other(fake, tmp_path):
    check = dataclasses.replace(CHECK, own_tiers=True, one_process=True, batch=8, lossless=False)
    result = measured(check, tmp_path)
    assert list(fake.orders) == ["recompute", "spectral-restore", "vllm-own"] and engines(check) == 3
    rows = {row.way: row for row in result.rows}
    assert {way: row.long_first_token_s["8192"] for way, row in rows.items()} == {
        "recompute": 8.0,
        "spectral": 2.0,
        "vllm-cpu-memory": 1.0,
        "vllm-files": 4.0,
    }
    assert rows["vllm-files"].long_over_recompute == {"8192": 0.5}
    names = [step.name for step in fake.orders["vllm-own"].steps]
    assert names.index("long 8192") < names.index("forget") < names.index("times from files")
    assert rows["spectral"].long_stages_s["8192"]["read_after_s"] == pytest.approx(0.1)
    assert len(rows["spectral"].long_samples_s["8192"]) == 6 and result.faults == []
    assert result.summary["restore_over_recompute_8k"] == 0.25


def test_long_prompts_come_from_the_store_every_time_on_a_gpu_alone(fake, tmp_path):
    measured(CHECK, tmp_path)
    steps = {step.name: step for step in fake.orders["spectral-restore"].steps}
    assert steps["long 8192"].cold and not steps["times"].cold and steps["long 8192"].rounds == 3
    assert not any(step.cold for step in fake.orders["recompute"].steps)
    measured(dataclasses.replace(CHECK, device="cpu"), tmp_path)
    assert not any(step.cold for step in fake.orders["spectral-restore"].steps)


def test_what_is_measured_so_far_is_kept_after_every_way(fake, tmp_path):
    kept = []
    check = dataclasses.replace(CHECK, own_tiers=True)
    fake.fails.add("lossless-restore")
    result = measured(check, tmp_path, kept.append)
    assert [[row.way for row in some.rows] for some in kept] == [
        ["recompute"],
        ["recompute", "lossless"],
        ["recompute", "lossless", "spectral"],
    ]
    assert [some.settings["unfinished"] for some in kept] == [
        ["lossless", "spectral", "vllm-cpu-memory", "vllm-files"],
        ["spectral", "vllm-cpu-memory", "vllm-files"],
        ["vllm-cpu-memory", "vllm-files"],
    ]
    assert kept[0].summary["restore_over_recompute_8k"] is None and "vllm-files: cut off" in kept[2].faults[-1]
    assert "unfinished" not in result.settings and result.faults == ["lossless: the engine of lossless-restore ended"]
    assert len(fake.orders) == engines(check) - 1  # all but the one that failed


WAITER = """
import json, sys
if sys.argv[1:] != ["--wait", "Llama"]:
    order_file, report_file = sys.argv[1:]
    how = "fresh"
else:
    print("imported", flush=True)
    order_file, report_file = (sys.stdin.readline().strip() for _ in range(2))
    how = "waited"
if BROKEN:
    raise SystemExit("no engine")
if report_file:
    steps = {step["name"]: {"how": how} for step in json.load(open(order_file))["steps"]}
    json.dump({"steps": steps}, open(report_file, "w"))
"""


@pytest.fixture
def waiter(monkeypatch, tmp_path):
    def write(broken: bool = False) -> None:
        (tmp_path / "sq_waiter_for_tests.py").write_text(WAITER.replace("BROKEN", str(broken)))

    write()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(spares, "CHILD", "sq_waiter_for_tests")
    monkeypatch.setattr(spares, "CORES", 1)
    return write


def ordered(folder, name, starter):
    order = Order("m", {}, None, CHECK_STEPS)
    return run(order, folder, name, child="sq_waiter_for_tests", starter=starter)["steps"]["settle"]["how"]


CHECK_STEPS = [module.Step("settle", "settle")]


def test_one_process_gets_ready_while_another_works(waiter, tmp_path):
    with Spares(tmp_path, 2, ["Llama"]) as some:
        assert [ordered(tmp_path, name, some.take()) for name in "abc"] == ["waited", "waited", "fresh"]
    assert (tmp_path / "a.log").read_text() == "imported\n" and not list(tmp_path.glob("spare*"))


def test_spares_that_are_not_needed_are_ended(waiter, tmp_path):
    with Spares(tmp_path, 5, ["Llama"]) as some:
        assert ordered(tmp_path, "a", some.take()) == "waited"
        last = some._spare
    assert not last.alive and not list(tmp_path.glob("spare*"))


def test_a_process_that_fails_says_why(waiter, tmp_path, monkeypatch):
    waiter(broken=True)
    with Spares(tmp_path, 2, ["Llama"]) as some, pytest.raises(InputError, match="no engine"):
        ordered(tmp_path, "a", some.take())


def test_machines_with_few_cores_have_no_spares(waiter, tmp_path, monkeypatch):
    monkeypatch.setattr(spares, "CORES", 1 << 20)
    with Spares(tmp_path, 2, ["Llama"]) as some:
        assert some.take() is None


def test_a_process_that_takes_too_long_is_ended(waiter, tmp_path, monkeypatch):
    (tmp_path / "sq_waiter_for_tests.py").write_text("import time; time.sleep(60)")
    with Spares(tmp_path, 1) as some:
        spare = some.take()
        assert spare.go(tmp_path / "o", tmp_path / "r", tmp_path / "l", 0.2) == -1 and not spare.alive
    assert process.surroundings({"A": "b"})["A"] == "b"
