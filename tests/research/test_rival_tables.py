"""Tables of rivals on the results page: protocols apart, tasks beside the uncompressed model, what is not measured named."""

import pytest

from research.readme.rivals import compared, outliers, tasks
from spectralquant.results.files import results_file

FIGURES = {"model": "builtin:m", "context": 2048, "n_tokens": 4096, "n_windows": 2, "whole_cache_ratio": 3.0}
FIGURES |= {"base_ppl": 20.0, "top1": 0.95, "delta_ppl": 0.1}


def row(method, mode, ratio, kl, **more):
    return FIGURES | {"method": method, "mode": mode, "payload_ratio": ratio, "kl_nats": kl, "options": {}} | more


def results(rows, failed=()):
    facts = {"command": "sq compare all", "device": "GPU Z", "created": "2026-11-27T00:00:00"}
    return results_file("compare", [*rows, *failed], facts, failed=list(failed))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Shows one results file in the place of the stored ones."""

    def show(module, name, result):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        monkeypatch.setattr(module, "load", {name: result}.get)
        (tmp_path / f"{name}.json").touch()

    return show


def test_protocols_stand_apart_and_a_failed_method_is_named(place):
    rows = [
        row("spectral", "streaming", 70.0, 0.008, options={"tier": "cold"}),
        row("spectral", "streaming", 90.0, 0.012, options={"tier": "cold", "step_scale": 2.0}),
        row("h2o", "streaming", 2.0, 0.03, options={"keep": 0.5, "mode": "streaming"}),
        row("h2o", "prompt", 2.0, 0.02, options={"keep": 0.5, "mode": "prompt"}, prompt_tokens=1536),
    ]
    failed = [{"method": "kivi", "options": {}, "mode": "streaming", "failed": "no room"}]
    place(compared, "compare-gemma3-wikitext2", results(rows, failed))
    text = compared.compare_second()
    streaming, prompt = text[: text.index("Prompt: ")], text[text.index("Prompt: ") :]
    assert "| h2o keep=0.5 | 2.0 | 3.0 | +0.100 | 0.0300 | 95.0 % | – |" in streaming and "0.0200" not in streaming
    assert (
        "| h2o keep=0.5 | 2.0 | 3.0 | +0.100 | 0.0200 | 95.0 % | – |" in prompt
        and "1,536 tokens compressed once" in prompt
    )
    assert "| spectral cold | 80.4 |" in streaming, "between 70 and 90, both logarithmic"
    assert text.startswith("`sq compare all`, GPU Z, 2026-11-27.") and text.endswith("Not measured: `kivi`: no room.")


def test_tasks_stand_beside_the_uncompressed_model(place):
    score = lambda x: {"needle@8192": {"context": 8192, "trials": 8, "score": x, "uncompressed": 0.75}}  # noqa: E731
    rows = [
        row("none", "prompt", 1.0, 0.0, tasks=score(0.75)),
        row("h2o", "prompt", 2.0, 0.03, options={"keep": 0.5, "mode": "prompt"}, tasks=score(0.125)),
        row("spectral", "prompt", 70.0, 0.008, options={"tier": "cold"}, tasks=score(0.625)),
    ]
    place(tasks, "tasks-gemma3-8192", results(rows))
    text = tasks.of_file("tasks-gemma3-8192")
    head, _, *body = [line for line in text.splitlines() if line.startswith("|")]
    assert head == "| m, prompt, % right of 8 | payload ratio | needle, 8,192 |"
    assert body == ["| uncompressed | 1.0 | 75 |", "| **spectral cold** | 70.0 | 62 |", "| h2o keep=0.5 | 2.0 | 12 |"]
    assert 'make results-gpu MORE="--only tasks-smollm2-2048"' in tasks.of_file("tasks-smollm2-2048")


def test_the_model_with_huge_channels_stands_beside_the_model(place):
    rows = [
        row("turboquant", "streaming", 4.9, 0.01, options={"bits": 3.0}, label="turboquant:bits=3"),
        row("turboquant", "streaming", 4.9, 5.0, options={"bits": 3.0}, label="turboquant:bits=3")
        | {"model": "builtin:m, one pair of key channels x 30", "delta_ppl": 300.0},
    ]
    place(outliers, "turboquant-outliers", results(rows))
    text = outliers.outliers()
    assert "| method | payload ratio | ΔPPL as it is | ΔPPL, one pair of key channels x 30 |" in text
    assert "| turboquant bits=3 | 4.9 | +0.10 | +300.00 |" in text
