"""All methods through one comparison, on the small model."""

import json
import math

import pytest
import torch
from conftest import profile_of

from spectralquant.errors import InputError
from spectralquant.evaluation.compare import Comparison, Protocol, modes_of
from spectralquant.evaluation.match import matched, pareto, parse_match
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import REGISTRY, get, parse
from spectralquant.results.quality import MethodRow
from spectralquant.results.unfinished import UnfinishedRun
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

SMALL = Protocol("test", 384, 0, False)


def comparison() -> Comparison:
    loaded, profile = profile_of("llama")
    text = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 8000)
    context = MethodContext(loaded, profile, text.windows(512)[:4])
    return Comparison(context, {640: text.windows(640)[-1:]}, SMALL, "builtin:stdlib")


def test_every_method_is_measured():
    names = [n for n in REGISTRY if n not in ("kivi", "heavy_hitter", "hf_quantized")]
    groups = [parse(n) for n in names] + [[get("heavy_hitter", threshold=t) for t in (0.9, 1.1)]]
    groups += [[get("kivi", bits=2, group=16)], [get("h2o+spectral", keep=0.5)]]
    result = comparison().run(groups)
    assert result["failed"] == []
    by_method = {}
    for row in result["rows"]:
        by_method.setdefault(row["method"], []).append(row)
    assert set(by_method) == {*names, "kivi", "heavy_hitter", "h2o+spectral"}
    for name, rows in by_method.items():
        rows = [r for r in rows if r["mode"] == "streaming" and r["options"].get("tier", "cold") == "cold"]
        ratios = [r["payload_ratio"] for r in rows]
        assert all(math.isfinite(r) for r in ratios)
        assert len(set(ratios)) == len(rows) or name in ("spectral", "heavy_hitter", "turboquant"), name
    assert by_method["none"][0]["kl_nats"] < 1e-3
    assert by_method["fp8"][0]["payload_ratio"] == pytest.approx(2, rel=0.1)
    for name in ("h2o", "snapkv", "scissorhands", "streaming_llm"):
        for mode in ("streaming", "prompt"):
            ratios = [r["payload_ratio"] for r in by_method[name] if r["mode"] == mode]
            assert ratios == pytest.approx([2, 5, 10], rel=0.05), "bytes held, of the whole length"
    plain = result.as_json()["rows"]
    assert plain == json.loads(json.dumps(plain))


def test_a_failing_method_is_reported_and_the_rest_goes_on():
    groups = [parse("none"), [get("kivi", bits=2, group=48)], [get("turboquant", bits=4)]]
    result = comparison().run(groups)
    assert [r["method"] for r in result["failed"]] == ["kivi"]
    assert "does not divide the head dimension" in result["failed"][0]["failed"]
    assert result["rows"][-1]["payload_ratio"] > 3


def test_a_method_that_does_nothing_is_an_error(monkeypatch):
    from spectralquant.methods.coding.turboquant import TurboQuant

    monkeypatch.setattr(TurboQuant, "decode", lambda self, coded: (coded.block.keys, coded.block.values))
    result = comparison().run([parse("none"), [get("turboquant", bits=4)]])
    assert "unchanged" in result["failed"][0]["failed"]


def test_finished_methods_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))
    first = comparison()
    monkeypatch.setattr(
        "spectralquant.evaluation.compare.measure",
        _interrupt_after(1, __import__("spectralquant.evaluation.measure", fromlist=["measure"]).measure),
    )
    groups = [parse("none"), [get("fp8")], [get("h2o", keep=0.2)]]
    with pytest.raises(KeyboardInterrupt), UnfinishedRun("compare", first.identity) as kept:
        first.run(groups, kept)
    monkeypatch.undo()
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))
    again = comparison()
    seen = []
    again.progress = lambda stage, done, total: seen.append(stage)
    with UnfinishedRun("compare", again.identity, resume=True) as kept:
        result = again.run(groups, kept)
    assert "none, 640 tokens, streaming" not in seen and "fp8, 640 tokens, streaming" in seen
    assert result["provenance"]["resumed_parts"] == 1
    assert [r["method"] for r in result["rows"]] == ["none", "fp8", "h2o"]


def _interrupt_after(count, function):
    calls = []

    def wrapped(*args, **options):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return function(*args, **options)

    return wrapped


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("turbo", "turboquant"),
        ("h2o:kep=0.2", "keep"),
        ("h2o:keep=much", "a number"),
        ("turboquant:bits", "option=value"),
        ("kivi:bits=2.5", "whole number"),
        ("h2o+spectral+fp8", "two methods"),
    ],
)
def test_wrong_names_and_options(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "spec", [get("h2o", keep=1.5), get("turboquant", bits=2.3), get("kvtc", ratio=0.5), get("spectral", tier="mild")]
)
def test_values_out_of_range(spec):
    with pytest.raises(InputError):
        spec.build(comparison().context)


def row(method, ratio, kl, context=2048):
    return MethodRow(method=method, options={}, context=context, payload_ratio=ratio, kl_nats=kl)


def test_matching_interpolates_and_says_what_it_cannot_know():
    rows = [row("a", 10, 0.001), row("a", 40, 0.1), row("b", 4, 0.005), row("c", 4, 0.5)]
    found = {r["method"]: r for r in matched(rows, 0.01)}
    assert found["a"]["payload_ratio"] == pytest.approx(20)
    assert found["b"]["bound"] == "at least" and found["b"]["payload_ratio"] == 4
    assert found["c"]["payload_ratio"] is None
    assert [(r["method"], r["payload_ratio"]) for r in pareto(rows)] == [("a", 10), ("a", 40)]
    assert parse_match("kl=0.01") == 0.01
    for bad in ("0.01", "kl=", "kl=-1", "dppl=1", "kl=1.2.3"):
        with pytest.raises(InputError):
            parse_match(bad)


def test_evicted_tokens_never_come_back_and_budgets_come_from_the_whole_length():
    loaded, _ = profile_of("llama")
    from spectralquant.evaluation.streaming import stream_window

    text = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 2000).windows(640, 1)[0]
    method = get("h2o", keep=0.3).build(comparison().context)
    kept_sizes = []

    class Watching:
        name, options, exact_bits, mode = method.name, method.options, 16, "streaming"
        held_bytes = staticmethod(method.held_bytes)

        @staticmethod
        def choose(history, held, length):
            new = method.choose(history, held, length)
            assert not bool((new & ~held).any())
            kept_sizes.append(int(new[0, 0].sum()))
            return new

    totals = stream_window(loaded.model, loaded.geometry, text, [Watching()])[0]
    assert kept_sizes == [128, 192, 192, 192, 192], "full at 192 of 640, nothing is dropped before"
    geometry = loaded.geometry
    entries = geometry.layers * geometry.kv_heads * 192
    assert totals.coded_bytes == entries * (4 * geometry.head_dim + 2), "what it holds, and a score an entry"
    assert torch.is_grad_enabled()


def test_modes_are_those_that_methods_ask_for():
    """Both protocols where both are asked for, each on the same tokens for all methods."""
    assert modes_of([parse("none"), parse("turboquant")]) == ("streaming",)
    assert modes_of([parse("none"), [get("h2o", mode="prompt")]]) == ("prompt",)
    assert modes_of([parse("h2o")]) == ("streaming", "prompt")
    groups = [
        parse("none"),
        [get("turboquant", bits=2)],
        [get("snapkv", keep=0.2, mode=m) for m in ("prompt", "streaming")],
    ]
    rows = comparison().run(groups)["rows"]
    assert [(r["method"], r["mode"]) for r in rows] == [
        ("none", "streaming"), ("turboquant", "streaming"), ("snapkv", "streaming"),
        ("none", "prompt"), ("turboquant", "prompt"), ("snapkv", "prompt"),
    ]  # fmt: skip
    assert {r["n_tokens"] for r in rows[:3]} == {639} and {r["n_tokens"] for r in rows[3:]} == {640 - 384 - 1}
    assert all(r["prompt_tokens"] == 384 and r["kl_nats"] > 0 for r in rows[4:])
    assert {r["mode"] for r in matched(rows, 0.5)} == {"streaming", "prompt"}


def test_a_prompt_is_read_exactly_and_compressed_once():
    """A method's error cannot reach the prompt's own predictions: a second prompt from the same prefix is the same."""
    from spectralquant.evaluation.streaming import stream_window

    context = comparison().context
    loaded, coarse = context.loaded, get("turboquant", bits=1).build(context)
    ids = tokenize(loaded.tokenizer, load_text("builtin:stdlib"), 2000).windows(640, 1)[0]
    blocks = []
    once = stream_window(loaded.model, loaded.geometry, ids, [coarse], lambda i, b, e: blocks.append(b), prompt=512)[0]
    assert [(b.start, b.tokens) for b in blocks] == [(4, 124), (128, 128), (256, 128)]
    plain = []
    stream_window(
        loaded.model, loaded.geometry, ids, [get("none").build(context)], lambda i, b, e: plain.append(b), prompt=512
    )
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(blocks, plain, strict=True))
    assert once.tokens == 127 and once.kl > 0 and once.fp16_bytes == loaded.geometry.fp16_bytes(512)
    with pytest.raises(InputError, match="cannot be measured in the prompt protocol"):
        stream_window(loaded.model, loaded.geometry, ids, [get("h2o").build(context)], prompt=512)


def test_one_window_is_not_quotable():
    result = comparison().run([parse("none"), [get("fp8")]])
    assert result["provenance"]["quotable"] is False
    assert not result["protocol"]["quotable"]


def test_scores_are_in_every_row_and_are_gated():
    """Total variation against a computation from the rates' definition, its bounds, and the gate's view of it."""
    from spectralquant.evaluation.scores.total_variation import total_variation
    from spectralquant.gate.metrics import metrics_of

    exact, coded = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
    assert total_variation(exact.log(), coded.log(), torch.zeros(2)).tolist() == pytest.approx([0.25, 1.0])
    result = comparison().run([[get("turboquant", bits=b) for b in (2.0, 4.0)]])
    coarse, fine = (row["scores"]["total_variation"] for row in result["rows"])
    assert 0 < fine < coarse < 1
    assert coarse <= math.sqrt(result["rows"][0]["kl_nats"] / 2) + 1e-6, "Pinsker's inequality, of means by Jensen's"
    names = [n for n in metrics_of(result) if n.endswith("total_variation")]
    assert len(names) == 2
