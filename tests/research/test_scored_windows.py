"""Scored windows are never calibration windows, nor those that choices are made on."""

import re
from pathlib import Path

import pytest
import torch

from research.windows import require_unseen, scored_windows, split_windows
from spectralquant.errors import InputError, SourceError
from spectralquant.text.mix import MixedText
from spectralquant.text.tokens import TokenText, tokens_sha256

RESEARCH = Path(__file__).resolve().parents[2] / "research"


def ids_of(windows):
    return set(windows.flatten().tolist())


def test_wikitext_is_cut_as_documented():
    """147 windows: 80 to calibrate, 32 to choose, 35 to report."""
    text = TokenText(torch.arange(301_948))
    split = split_windows(text, 2048)
    assert [len(part) for part in (split.calibration, split.development, split.report)] == [80, 32, 35]
    assert int(split.development[0, 0]) == 80 * 2048 and int(split.report[0, 0]) == 112 * 2048


@pytest.mark.parametrize("tokens, bos", [(80, None), (301_948, None), (301_948, 7), (5_003, 1)])
@pytest.mark.parametrize("window", [8, 9, 30])
def test_parts_share_nothing(tokens, bos, window):
    split = split_windows(TokenText(torch.arange(10, 10 + tokens), bos), window)
    parts = [ids_of(part) - {bos} for part in (split.calibration, split.development, split.report)]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]


@pytest.mark.parametrize("part", ["report", "development"])
@pytest.mark.parametrize("scored", [None, 16, 40])
def test_nothing_scored_is_calibrated_or_held_out(part, scored):
    text = TokenText(torch.arange(1600))
    windows = scored_windows(text, steps=90, window=8, count=3, part=part, scored=scored)
    assert windows.shape == (3, scored or 8) and int(windows.min()) >= (90 + 2) * 8
    other = getattr(split_windows(text, scored or 8), "development" if part == "report" else "report")
    assert not ids_of(windows) & ids_of(other)


def test_too_little_text_is_refused():
    text = TokenText(torch.arange(80))
    assert scored_windows(text, steps=5, window=8, count=3).shape == (3, 8)
    with pytest.raises(SourceError, match="first 5 may calibrate"):
        scored_windows(text, steps=6, window=8, count=3)
    with pytest.raises(SourceError, match="3 of 8 tokens in its report part"):
        scored_windows(text, steps=4, window=8, count=4)
    with pytest.raises(InputError, match="not one of report, development"):
        scored_windows(text, 1, 8, 1, "test")


def test_held_out_windows_are_not_scored_for_development():
    text = TokenText(torch.arange(80))
    with pytest.raises(SourceError):
        scored_windows(text, steps=5, window=8, count=2, part="development")


def test_a_profile_of_the_scored_text_is_refused():
    ids = torch.arange(1000)
    text = MixedText(ids)

    class Source:
        tokens, sha256 = 900, tokens_sha256(ids[:900])

    require_unseen(text, [Source], count=2, window=50)
    with pytest.raises(InputError, match="calibrated on the first 900 tokens"):
        require_unseen(text, [Source], count=3, window=50)
    with pytest.raises(InputError, match="has 20 windows of 50 tokens, and 21 are to be scored"):
        require_unseen(text, [], count=21, window=50)


def test_no_study_takes_windows_from_the_end_by_itself():
    """Studies that score quality ask `research.windows`; those listed time one prompt, or read a text that is scored whole."""
    alone = {"packet.py", "cache.py", "shapes.py", "model.py", "costs.py", "windows.py"}
    taking = {f.name for f in RESEARCH.rglob("*.py") if re.search(r"\.windows\([^\n]*\)\[-", f.read_text())}
    assert taking <= alone
