"""Scored windows are never calibration windows."""

import pytest
import torch

from research.windows import scored_windows
from spectralquant.errors import SourceError
from spectralquant.text.tokens import TokenText


def test_scored_windows_come_after_calibration_and_held_out_ones():
    text = TokenText(torch.arange(80))
    scored = scored_windows(text, steps=4, window=8, count=4)
    assert scored.shape == (4, 8) and int(scored.min()) == 48 >= (4 + 2) * 8
    with pytest.raises(SourceError, match="all different, need 11"):
        scored_windows(text, steps=4, window=8, count=5)
