"""The quality study: its parts go on where they stopped, and are made anew when anything that decides them has changed."""

import json
from dataclasses import replace

import pytest
from conftest import random_model, small_tokenizer

from research.quality import run as study_run
from research.quality.parts import QualityStudy
from research.quality.run import QualityTexts, run_quality
from research.quality.study import AS_HELD, QualityParts
from research.quality.texts import IN_MIX, MIX, MORE, OUTSIDE, names, text_file, words
from spectralquant.errors import InputError, SourceError
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text

STUDY = QualityStudy(steps=4, general_steps=4, window=512, windows=6, per_text=1, ratios=(10, 20), cost_windows=1)
STUDY = replace(STUDY, held_out=2, text_tokens=12_000)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> QualityTexts:
    """Four texts that are in no package: pieces of Python's manual, forwards and backwards."""
    folder = tmp_path_factory.mktemp("texts")
    manual = "\n\n".join(load_text("builtin:pydoc"))
    pieces = {
        "home": manual[:120_000],
        "in": manual[200_000:240_000],
        "out": manual[:30_000][::-1],
        "more": "abc " * 9000,
    }
    for name, piece in pieces.items():
        (folder / f"{name}.txt").write_text(piece, encoding="utf-8")
    files = {name: f"file:{folder / name}.txt" for name in pieces}
    return QualityTexts((files["home"],), (files["in"],), (files["out"],), (files["more"],))


def run(small, texts, out, *parts, study=STUDY, progress=lambda *_: None):
    return run_quality(small, study, texts, parts, out, lambda _: None, progress)


def times(out):
    return {p.name: p.stat().st_mtime_ns for p in out.with_suffix(".parts").glob("*-*.json")}


@pytest.fixture(scope="module")
def finished(small, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("quality") / "quality.json"
    for part in ("home", "general", "texts:0/2", "texts:1/2"):
        run(small, texts, out, part)
    return out, times(out)


@pytest.mark.slow  # calibrates for an error: a table of many kinds of text
def test_parts_side_by_side_are_the_whole(small, texts, finished):
    out, before = finished
    result = run(small, texts, out).as_json()
    assert times(out) == before
    assert [t["kind"] for t in result["texts"]] == [IN_MIX, MORE, OUTSIDE]
    filled = {k for k, v in result["summary"].items() if v is not None}
    assert {
        "general_in_mix_min_ratio",
        "general_outside_min_ratio",
        "general_max_kl",
        "bound_exceeded_max_share",
    } <= filled
    assert result["summary"]["complement_cost_share_at_home"] is not None
    home = result["homes"]["small-random"]
    assert home["calibration_windows"] == 4 and len(result["rows"]) == 2 + 3 * 5
    assert result["provenance"]["code"] and result["provenance"]["device"]
    assert not [p for p in out.with_suffix(".parts").iterdir() if p.is_dir()], "what was unfinished is gone"


@pytest.mark.slow  # calibrates for an error: a table of many kinds of text
def test_other_options_and_another_profile_make_parts_anew(small, texts, finished):
    out, before = finished
    run(small, texts, out, "texts:0/3", study=replace(STUDY, turbo_bits=(2, 3)))
    assert sum(a != b for a, b in zip(times(out).values(), before.values(), strict=True)) == 1
    assert len(times(out)) == len(before)


@pytest.mark.slow  # calibrates for an error: a table of many kinds of text
def test_home_goes_on_from_the_windows_that_are_scored(small, texts, tmp_path):
    out = tmp_path / "quality.json"

    def interrupt(stage, done, total):
        if stage == "scoring" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, texts, out, "home", progress=interrupt)
    kept = list(out.with_suffix(".parts").glob("home-*/windows-0.json"))
    assert len(kept) == 1
    first = json.loads(kept[0].read_text())
    seen = []
    result = run(small, texts, out, "home", progress=lambda stage, done, total: seen.append((stage, done)))
    rows = result.as_json()["rows"]
    assert [r["n_windows"] for r in rows] == [6, 6]
    whole = run(small, texts, tmp_path / "again.json", "home").as_json()["rows"]
    assert [r["kl_nats"] for r in rows] == pytest.approx([r["kl_nats"] for r in whole])
    assert [r["coded_bytes"] for r in rows] == [r["coded_bytes"] for r in whole]
    assert sum(w["coded_bytes"] for w in first[0]) < rows[0]["coded_bytes"]


@pytest.mark.slow  # calibrates for an error: a table of many kinds of text
def test_sliding_layers_are_counted_with_all_tokens_and_with_what_they_hold(texts, tmp_path):
    model = random_model("gemma3_text")
    sliding = LoadedModel("small-sliding", model, small_tokenizer(), probe_geometry(model))
    result = run(sliding, texts, tmp_path / "quality.json", "home").as_json()

    assert set(result["homes"]) == {"small-sliding", f"small-sliding{AS_HELD}"}
    held = [r for r in result["rows"] if r["options"].get("sliding_layers") == "as held"]
    every = [r for r in result["rows"] if "sliding_layers" not in r["options"]]
    assert len(held) == len(every) == 2
    bytes_of = [sum(r["payload_ratio"] * r["coded_bytes"] for r in some) for some in (every, held)]
    assert bytes_of[0] > 2 * bytes_of[1], "two of three layers hold 64 of 512 tokens"


@pytest.mark.slow  # calibrates for an error: a table of many kinds of text
def test_a_text_that_calibrated_the_profile_is_refused(small, texts, finished):
    out, _ = finished
    run_parts = QualityParts(out, small, STUDY, lambda *_: None)
    ids = study_run._Reader(small, STUDY, True, lambda _: None).text(list(texts.mix), 4 * 512)
    ids = replace(ids, ids=ids.ids[: 4 * 512])
    with pytest.raises(InputError, match="calibrated"):
        run_parts.texts([(IN_MIX, "the same", lambda: ids)], (0, 1))


@pytest.mark.parametrize("share", ["6/6", "a", "1/0", "-1/2"])
def test_a_share_that_is_none_is_refused(small, texts, tmp_path, share):
    with pytest.raises(InputError, match="no share"):
        run(small, texts, tmp_path / "q.json", f"texts:{share}")


def test_own_texts_are_of_all_kinds_and_twenty_or_more():
    assert len(names(IN_MIX)) + 1 >= 4 and len(names(OUTSIDE)) >= 4 and len(names(MIX)) >= 2
    assert 1 + sum(len(names(kind)) for kind in (IN_MIX, OUTSIDE, MORE)) >= 20


def test_made_texts_need_no_network_and_others_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))
    assert len(text_file("random-bytes", offline=True).read_text(encoding="utf-8")) > 100_000
    with pytest.raises(SourceError, match="by apt"):
        text_file("french-handbook", offline=True)


def test_words_of_a_page():
    page = "<html><head><title>no</title></head><body><p>One&nbsp;&amp; two<br/>three</p><script>no</script><ul><li>four</li></ul>"
    assert words(page).split() == ["One", "&", "two", "three", "four"]
