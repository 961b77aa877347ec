"""What `sq study serving-hot` refuses before an engine starts, and how it shares its engines out."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from research.serving import hot, hot_speed
from research.serving.engines.cards import VISIBLE, cards
from research.serving.engines.side_by_side import side_by_side
from research.serving.hot import FP8, HOT, NOT_STARTED, PLAIN, HotStudy, run_ways, serving_hot_study, ways
from research.serving.hot_speed import Rows, serving_hot_speed
from spectralquant.errors import InputError, ProfileError
from spectralquant.files import write_json
from spectralquant.integrations.serve_check import process
from spectralquant.integrations.serve_check.orders import Order
from spectralquant.integrations.vllm.hot.variable import VARIABLE
from spectralquant.results.files import read_results


def quiet(line: str) -> None:
    pass


def gpus(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_profile_that_is_not_there_is_refused_first(tmp_path):
    with pytest.raises(ProfileError, match="There is no profile"):
        serving_hot_study("builtin:smollm2-135m", tmp_path / "none", HotStudy(), offline=True, report=quiet)


def test_a_way_that_does_not_exist_is_refused_first():
    with pytest.raises(InputError, match=r"No way is called fp8, bf16\. They are bf16 pages, fp8 pages,"):
        serving_hot_speed(HotStudy(), report=quiet, only=(HOT, "fp8", "bf16"))


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 0, []),
        ("", 0, []),
        ("-1", 0, []),
        (None, 2, ["0", "1"]),
        ("3", 1, ["3"]),
        ("2, 0", 2, ["2", "0"]),
        ("GPU-1a,GPU-2b", 2, ["GPU-1a", "GPU-2b"]),
    ],
)
def test_gpus_have_the_names_that_the_environment_gives_them(visible, count, expected, monkeypatch):
    gpus(monkeypatch, count)
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert cards() == expected


@pytest.mark.parametrize(("visible", "count"), [("0,0,0,0", 0), ("0", 0), ("0,7", 1)])
def test_names_of_gpus_that_cannot_be_used_are_refused(visible, count, monkeypatch):
    gpus(monkeypatch, count)
    monkeypatch.setenv(VISIBLE, visible)
    with pytest.raises(InputError, match=f"{VISIBLE}={visible} names .* PyTorch can use {count}"):
        cards()


def orders(*names: str) -> dict[str, Order]:
    return {name: Order("model", ways(gpu=True)[name], None, [], "builtin:pydoc") for name in names}


@pytest.fixture
def engines(monkeypatch):
    """What engines are started with, in order; those of `failing` end early."""
    monkeypatch.delenv(VISIBLE, raising=False)
    begun: dict[str, dict] = {}
    failing: set[str] = set()

    def run(order, folder, name, child, variables):
        begun[name] = {**order.engine, **variables}
        if name in failing:
            raise InputError(f"{name} ended")
        return {"name": name}

    monkeypatch.setattr(hot, "run", run)
    return begun, failing


def test_hot_pages_begin_and_reports_keep_their_order(engines, monkeypatch):
    gpus(monkeypatch, 1)
    begun, _ = engines
    assert list(run_ways(orders(PLAIN, FP8, HOT), Path("p"), Path("f"), quiet)) == [PLAIN, FP8, HOT]
    assert list(begun) == ["hot-pages", "bf16-pages", "fp8-pages"]
    assert begun["hot-pages"] == {"attention_backend": "CUSTOM", VARIABLE: str(Path("p").absolute())}
    assert begun["bf16-pages"] == {VARIABLE: ""}


def test_after_an_engine_that_fails_no_other_starts(engines, monkeypatch):
    gpus(monkeypatch, 1)
    begun, failing = engines
    failing.add("hot-pages")
    with pytest.raises(InputError, match="hot-pages ended"):
        run_ways(orders(PLAIN, FP8, HOT), Path("p"), Path("f"), quiet)
    assert list(begun) == ["hot-pages"]


def test_every_engine_has_a_gpu_of_its_own(engines, monkeypatch):
    gpus(monkeypatch, 3)
    monkeypatch.setenv(VISIBLE, "5,6,7")
    begun, _ = engines
    run_ways(orders(PLAIN, FP8, HOT), Path("p"), Path("f"), quiet)
    assert {name: started[VISIBLE] for name, started in begun.items()} == {
        "hot-pages": "5",
        "bf16-pages": "6",
        "fp8-pages": "7",
    }


def test_a_gpu_is_taken_as_soon_as_it_is_free(engines, monkeypatch):
    gpus(monkeypatch, 2)
    began, first_ends = [], threading.Event()

    def task(name, gpu):
        began.append((name, gpu[VISIBLE]))
        if name == "first":
            assert first_ends.wait(10)
        if name == "last":
            first_ends.set()

    side_by_side({name: partial(task, name) for name in ("first", "second", "third", "last")})
    assert dict(began)["first"] == "0"
    assert [gpu for name, gpu in began if name != "first"] == ["1", "1", "1"]


def test_the_profile_is_made_on_the_gpu_of_hot_pages_while_others_run(engines, monkeypatch):
    gpus(monkeypatch, 2)
    made_on, others_ran = [], threading.Event()

    def make(gpu):
        assert others_ran.wait(10)
        made_on.append(gpu[VISIBLE])

    def done(name, result):
        if name == PLAIN:
            others_ran.set()

    run_ways(orders(PLAIN, FP8, HOT), Path("p"), Path("f"), quiet, make_profile=make, done=done)
    assert made_on == ["0"]


def finished(pages: int, device: str = "H") -> dict:
    rates = {"tokens_per_s": [10.0, 12.0, 11.0], "step_s": 0.1}
    return {
        "facts": {"pages": pages, "start_s": 1.0, "device": device},
        "steps": {"batch 8": rates, "batch 16": {"left_out": "no"}},
    }


def test_rows_are_written_as_ways_end_and_taken_by_the_next_run(tmp_path):
    out, study = tmp_path / "x.json", HotStudy(batches=(8, 16))
    rows = Rows(study, [PLAIN, FP8, HOT], out, quiet)
    rows.add(HOT, finished(400))
    rows.add(PLAIN, finished(100))
    half = read_results(out)
    assert [row.way for row in half.rows] == [f"8b/{PLAIN}", f"8b/{HOT}"] and half.settings["unfinished"] == [FP8]
    assert half.rows[0].decode_tokens_per_s == {"8": 11.0} and half.faults
    later = Rows(study, [PLAIN, FP8, HOT], out, quiet)
    assert later.missing == [FP8] and later.results(finished=True).faults == [f"8b/{FP8}: {NOT_STARTED}"]
    later.add(FP8, finished(200))
    whole = later.results(finished=True)
    assert whole.summary == {"hot_capacity_over_bf16": 4.0, "hot_tokens_per_s_over_fp8_b8_32k": 1.0}
    assert "unfinished" not in whole.settings and not whole.faults
    write_json(out, whole.as_json())
    assert Rows(study, [PLAIN], out, quiet).missing == [PLAIN]  # a whole one is measured again


@pytest.mark.parametrize("change", ["commit", "study"])
def test_rows_of_another_commit_or_study_are_not_taken(change, tmp_path, monkeypatch):
    out, study = tmp_path / "x.json", HotStudy(batches=(8, 16))
    Rows(study, [PLAIN, HOT], out, quiet).add(HOT, finished(400))
    if change == "study":
        study = replace(study, long_new=99)
    else:
        monkeypatch.setattr(hot_speed, "provenance", lambda **_: {"git_commit": "another"})
    assert Rows(study, [PLAIN, HOT], out, quiet).missing == [PLAIN, HOT]


def test_rows_of_another_device_make_way(tmp_path):
    rows = Rows(HotStudy(batches=(8, 16)), [PLAIN, HOT], None, quiet)
    rows.add(HOT, finished(400, "one"))
    rows.add(PLAIN, finished(100, "two"))
    assert rows.missing == [HOT]


def test_memory_of_pages_is_what_the_engine_was_given(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert hot._space({}, gpu=False) == "1 GiB"
    assert hot._space({"gpu_memory_utilization": 0.3}, gpu=True) == "30% of the GPU"
    assert hot._space({"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 2 << 30}, gpu=True) == "2 GiB"


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (True, r"^The large part of serving-hot needs a GPU, and PyTorch can use none here\.$"),
        (False, r"^The large part of serving-hot needs a GPU, .* none here\. vLLM is not installed here\."),
    ],
)
def test_the_large_part_names_the_gpu_first_and_both_where_both_lack(installed, said, monkeypatch):
    gpus(monkeypatch, 0)
    monkeypatch.setattr(process, "find_spec", lambda name: name if installed else None)
    with pytest.raises(InputError, match=said):
        serving_hot_speed(HotStudy(), report=quiet)
