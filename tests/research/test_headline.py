"""The headline study end to end on a small model; its texts come by their clients or are refused."""

import subprocess

import pytest
import torch
from conftest import profile_of

from research.headline import texts
from research.headline.parts import HeadlineStudy, rivals_profiles
from research.headline.study import STAGES, HeadlineParts, foreign_of, joined
from research.headline.texts import KINDS, PACKAGED, text_file
from research.run import Desk, _timed_or_not
from spectralquant.errors import InputError, SourceError
from spectralquant.evaluation.measure import measure
from spectralquant.methods.context import MethodContext
from spectralquant.methods.grouped import GroupedMethod
from spectralquant.methods.registry import get
from spectralquant.text.read import load_text

STUDY = HeadlineStudy(
    steps=3, window=384, windows=2, ratios=(6, 10), other_ratios=(3, 6), rivals=("fp8", "kvtc", "h2o"), kl=0.001
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


def test_sliding_layers_are_not_timed_and_that_is_said():
    """A window's blocks are coded together where all layers read equally far; elsewhere there is no one time of a block."""
    told: list[str] = []
    desk = Desk(lambda *_: None, told.append, lambda _: None, resume=False)
    sliding, full = profile_of("gemma3_text")[0], profile_of("llama")[0]
    assert _timed_or_not(full, (), desk) == () and not told
    assert _timed_or_not(sliding, (), desk) == ("fit", "score")
    assert len(told) == 1 and "sliding layers" in told[0]
    assert _timed_or_not(sliding, ("score:bible",), desk) == ("score:bible",)
    with pytest.raises(InputError, match="Leave it out"):
        _timed_or_not(sliding, ("fit", "speed"), desk)


def run_of(loaded, wiki, out, study=STUDY):
    return HeadlineParts(out, loaded, study, (f"file:{wiki}",), True, lambda _: None, lambda *_: None)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_what_kvtc_shares_between_requests_is_counted(architecture):
    """In fp16 two means, and the components that a code keeps."""
    loaded, _ = profile_of(architecture)
    windows = torch.randint(5, 500, (3, 640), generator=torch.Generator().manual_seed(0))
    context = MethodContext(loaded, windows=windows)
    method = get("kvtc", ratio=12).build(context)
    parts = list(method.parts.values()) if isinstance(method, GroupedMethod) else [method]
    [row] = [m.row(loaded.geometry, "m", 640) for m in measure(loaded.model, loaded.geometry, windows[-1:], [method])]
    found = rivals_profiles([method], [row])["kvtc"][row.payload_ratio]
    numbers = 0
    for part in parts:
        live = torch.cat([part.order[g.start : g.stop] for g in part.groups])
        width = len(part.bases[0].mean)
        numbers += 2 * width + len(set(live.tolist())) * width
        assert 0 < len(live) < 2 * width, "some components are dropped"
    assert found == 2 * numbers


@pytest.mark.slow  # five calibrations and four comparisons
def test_every_model_text_and_method_has_a_row(cache, tmp_path, monkeypatch):
    loaded, _ = profile_of("llama")
    out = tmp_path / "headline.json"
    with pytest.raises(InputError, match=r"needs .*which --part fit makes"):
        run_of(loaded, cache, out).run(("score:bible",))
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
            *((m, None, "streaming") for m in ("fp8", "kvtc", "h2o")),
        }
        for row in rows.values():
            assert row.bound in ("interpolated", "at least", "never") and (row.payload_ratio is None) == (
                row.bound == "never"
            )
        kvtc = rows["kvtc", None, "streaming"]
        assert kvtc.payload_ratio is None or kvtc.profile_bytes > 0
    points = [p for p in result.points if p.method == "spectral"]
    assert len(points) == 4 * 8 and all(p.payload_ratio > 1 for p in points)
    assert {r.method for r in result.speed} == {"spectral", "fp8", "kvtc"} and all(
        r.decode_gb_s > 0 for r in result.speed
    )
    assert len(result.profiles) == 5 and all(p["profile_bytes"] for p in result.profiles)
    parts = result.provenance["parts"]
    assert len(parts) == 10 and "research/headline" in parts[f"{run.model}.score-bible"]["code"]
    seen = {p["text"]: p["calibration_sha256"] for p in result.profiles}
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
