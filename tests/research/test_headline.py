"""The headline study end to end on a small model; its texts come by their clients or are refused."""

import subprocess

import pytest
import torch
from conftest import profile_of, random_model, small_tokenizer

from research.headline import texts
from research.headline.curves import Budgets
from research.headline.parts import HeadlineStudy, SharedPca, shared_bytes
from research.headline.speed import _pieces, speed_rows
from research.headline.study import STAGES, HeadlineParts, foreign_of, joined
from research.headline.texts import KINDS, PACKAGED, text_file
from spectralquant.errors import InputError, SourceError
from spectralquant.methods.context import MethodContext
from spectralquant.methods.grouped import GroupedMethod
from spectralquant.methods.registry import get
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text

KEEPS = (0.95, 0.5, 0.15)
STUDY = HeadlineStudy(
    steps=3,
    window=384,
    windows=2,
    ratios=(4, 8),
    other_ratios=(3, 6),
    rivals=(
        Budgets("kvtc:ratio={}", (2, 4, 8, 16), 4),
        Budgets("turboquant:bits={}", (8, 4, 2), 4),
        Budgets("h2o:keep={},mode=streaming", KEEPS, 0.5),
        Budgets("h2o:keep={},mode=prompt", KEEPS, 0.5),
    ),
    kl=0.005,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder with a text of every kind, each other than the rest."""
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "texts"
    folder.mkdir(parents=True)
    words = "\n\n".join(load_text("builtin:pydoc"))
    for number, name in enumerate(PACKAGED):
        (folder / f"{name}.txt").write_text(words[40_000 * number :][:40_000])
    wiki = tmp_path / "wiki.txt"
    wiki.write_text(words[200_000:240_000])
    return wiki


def test_sliding_layers_are_timed_too():
    """All of a window's blocks count in the rates; the next token waits for those within its reach."""
    model = random_model("gemma3_text", sliding_window=320)
    loaded = LoadedModel("small-sliding", model, small_tokenizer(), probe_geometry(model))
    ids = torch.randint(5, 500, (900,), generator=torch.Generator().manual_seed(0))
    context = MethodContext(loaded, windows=ids[None, :640])
    methods = [get("kvtc", ratio=4).build(context), get("turboquant", bits=4).build(context), get("h2o").build(context)]
    assert isinstance(methods[0], GroupedMethod)
    rows = speed_rows(loaded, ids, methods)
    assert [r.method for r in rows] == ["kvtc", "turboquant"] and all(r.blocks == 7 for r in rows)
    assert all(min(r.encode_gb_s, r.decode_gb_s, r.first_token_s, r.prefill_s) > 0 for r in rows)
    for method in methods[:2]:
        pieces = _pieces(loaded, ids, method)
        sliding = [p for p in pieces if p.block.keys.shape[1] == 2]
        full = [p for p in pieces if p.block.keys.shape[1] == 1]
        assert all(p.read for p in full) and [p.read for p in sliding] == [False] * 4 + [True] * 3
        width = 4 * 16 * 2  # bytes of keys and values of 2 heads of 16 in a layer
        assert sum(p.block.fp16_bytes for p in pieces) == 3 * width * (7 * 128 - 4)
        for piece in pieces:
            keys, values = piece.codec.decode(piece.encoded)
            assert keys.shape == values.shape == piece.block.keys.shape


def run_of(loaded, wiki, out, study=STUDY):
    return HeadlineParts(out, loaded, study, (f"file:{wiki}",), True, lambda _: None, lambda *_: None)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_what_kvtc_shares_between_requests_is_counted(architecture):
    """In fp16 two means, and the components that a code keeps."""
    loaded, _ = profile_of(architecture)
    windows = torch.randint(5, 500, (3, 640), generator=torch.Generator().manual_seed(0))
    context = SharedPca(loaded, windows=windows)
    method = get("kvtc", ratio=12).build(context)
    parts = list(method.parts.values()) if isinstance(method, GroupedMethod) else [method]
    numbers = 0
    for part in parts:
        live = torch.cat([part.order[g.start : g.stop] for g in part.groups])
        width = len(part.bases[0].mean)
        numbers += 2 * width + len(set(live.tolist())) * width
        assert 0 < len(live) < 2 * width, "some components are dropped"
    assert shared_bytes(method) == 2 * numbers
    again = get("kvtc", ratio=6).build(context)
    some = next(iter(again.parts.values())) if isinstance(again, GroupedMethod) else again
    assert some.bases[0].rows is parts[0].bases[0].rows, "the bases are solved once"
    assert shared_bytes(again) > shared_bytes(method) and shared_bytes(get("turboquant", bits=4).build(context)) is None


@pytest.mark.slow  # five calibrations and four comparisons
def test_every_model_text_and_method_has_a_row(cache, tmp_path, monkeypatch):
    loaded, _ = profile_of("llama")
    out = tmp_path / "headline.json"
    with pytest.raises(InputError, match=r"needs .*which --part fit makes"):
        run_of(loaded, cache, out).run(("score:bible",))
    with pytest.raises(InputError, match=r"needs .*which --part score:wikitext makes"):
        run_of(loaded, cache, out).run(("speed",))
    run = run_of(loaded, cache, out)
    run.run(())
    result = joined(out, STUDY)
    assert {row.text for row in result.rows} == set(KINDS)
    for name in KINDS:
        rows = {(r.method, r.profile, r.mode): r for r in result.rows if r.text == name}
        kinds = {("spectral", p, "streaming") for p in ("own", "general", f"foreign {foreign_of(name)}")}
        assert rows.keys() == kinds | {
            ("spectral", "own", "prompt"),
            ("h2o", None, "prompt"),
            *((m, None, "streaming") for m in ("turboquant", "kvtc", "h2o")),
        }
        for (method, profile, mode), row in rows.items():
            points = [p for p in result.points if (p.text, p.method, p.mode) == (name, method, mode)]
            points = [p for p in points if p.options.get("variant") == profile]
            good = [p.kl_nats <= STUDY.kl for p in points]
            assert row.bound == (
                "interpolated" if any(good) and not all(good) else "at least" if any(good) else "never"
            )
            budgets = {p.options.get(k) for p in points for k in ("target_ratio", "ratio", "bits", "keep")} - {None}
            last = {
                "spectral": ({2, 1.5}, {16, 12}),
                "kvtc": ({2}, {16}),
                "turboquant": ({8}, {2}),
                "h2o": ({0.95}, {0.15}),
            }[method]
            if row.bound != "interpolated":  # walked to the last budget on the side that was missing
                assert budgets & last[all(good)], (name, method, profile, budgets)
        kvtc = rows["kvtc", None, "streaming"]
        assert kvtc.payload_ratio is None or kvtc.profile_bytes > 0
    assert all(p.payload_ratio > 1 for p in result.points if p.method == "spectral")
    assert sorted(r.method for r in result.speed) == ["kvtc", "spectral", "turboquant"]
    assert all(r.decode_gb_s > 0 for r in result.speed)
    fits = [p for p in result.profiles if ".fit-" in p["part"]]
    assert len(fits) == 5 and all(p["profile_bytes"] for p in result.profiles)
    assert {p["text"]: set(p["profile_bytes"]) for p in fits} == {
        "wikitext": {"3", "4", "6", "8"},
        "python": {"3", "4", "6", "8"},
        "french": {"4", "8"},
        "bible": {"4", "8"},
        "general": {"3", "6"},
    }
    asked = {
        (p.text, p.options["variant"], f"{p.options['target_ratio']:g}")
        for p in result.points
        if p.method == "spectral" and p.options["target_ratio"] in (2, 16, 1.5, 12)
    }
    further = {
        (p["part"].partition("score-")[2], r) for p in result.profiles if p not in fits for r in p["profile_bytes"]
    }
    assert further == {(text, ratio) for text, _, ratio in asked}, "every tier that was fitted later is told"
    parts = result.provenance["parts"]
    assert len(parts) == 10 and "research/headline" in parts[f"{run.model}.score-bible"]["code"]
    seen = {p["text"]: p["calibration_sha256"] for p in fits}
    assert len(set(seen.values())) == 5, "no two texts are the same"
    monkeypatch.setattr("research.headline.study.fit", None)  # the second time nothing is made
    monkeypatch.setattr("research.headline.study.score", None)
    run_of(loaded, cache, out).run(STAGES[:2])


def test_unknown_parts_are_refused(cache, tmp_path):
    loaded, _ = profile_of("llama")
    run = run_of(loaded, cache, tmp_path / "h.json")
    for part, words in (("fits", "did you mean"), ("score:bibel", "did you mean"), ("score:general", "texts are")):
        with pytest.raises(InputError, match=f"(?i){words}"):
            run.run((part,))


def test_scored_windows_of_a_short_text_are_fewer_and_none_is_calibrated(cache, tmp_path):
    loaded, _ = profile_of("llama")
    study = HeadlineStudy(steps=1000, window=384, windows=1000)
    text = run_of(loaded, cache, tmp_path / "h.json", study).text("bible")
    scored, calibrated = study.scored(text), text.windows(384)[: study.steps_of(text)]
    assert len(scored) >= 5 and len(calibrated) >= 10
    windows = {tuple(w.tolist()) for w in calibrated}
    assert not any(tuple(w.tolist()) in windows for w in scored)


def test_a_text_that_is_not_there_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=r"'bible' \(bible-kjv, bible-kjv-text, by apt\) is not there\. Put a text"):
        text_file("bible", offline=True)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no apt-get"), subprocess.CalledProcessError(100, "x", "", "a\nE: no network")]
)
def test_a_client_that_fails_is_named(tmp_path, monkeypatch, error):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(texts.subprocess, "run", fail)
    with pytest.raises(
        SourceError, match=r"cannot be fetched as developers-reference-fr by apt: .*no (apt-get|network)"
    ):
        text_file("french")
    assert not (tmp_path / "texts" / "french.txt").exists()
