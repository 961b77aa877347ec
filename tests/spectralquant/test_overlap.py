"""Scored text is found in calibration text at any offset, and only there."""

import pytest
import torch

from spectralquant.text.overlap import block_hashes, overlap


def tokens(count, seed):
    return torch.randint(0, 50_000, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [0, 1, 63, 64, 100])
def test_a_shared_run_is_found_wherever_it_begins(shift):
    calibrated = tokens(4096, 0).view(4, 1024)
    scored = tokens(2048, 1).view(2, 1024)
    scored[1, 300:800] = calibrated[2, shift : shift + 500]
    share = overlap(block_hashes(calibrated), scored)
    assert (500 - 127) / 2048 <= share <= 500 / 2048


def test_other_text_has_none_and_the_same_text_all():
    calibrated = tokens(8192, 2).view(4, 2048)
    assert overlap(block_hashes(calibrated), tokens(40_960, 3).view(20, 2048)) == 0
    assert overlap(block_hashes(calibrated), calibrated) == 1
    assert overlap("", calibrated) == 0


def test_a_profile_keeps_the_hashes_of_its_text(small_profile):
    side = small_profile.sidecar.text
    assert len(side.blocks) == 12 * (side.tokens // side.window) * (side.window // 64)


def test_a_comparison_says_how_much_of_its_text_was_calibrated_on(small, small_profile):
    """Scored windows of the rivals' calibration text, half of them: named, and not quotable."""
    from spectralquant.evaluation.compare import Comparison, Protocol
    from spectralquant.methods.context import MethodContext
    from spectralquant.methods.registry import get

    scored = torch.randint(0, 500, (2, 512), generator=torch.Generator().manual_seed(5))
    context = MethodContext(small, small_profile, scored[:1])
    result = Comparison(context, {512: scored}, Protocol("test", 512, 0, True), "random").run([[get("fp8")]])
    assert result["provenance"]["overlap"] == {"profile": 0.0, "rivals": 0.5}
    assert any("50 % of the scored text" in reason for reason in result["provenance"]["not_quotable"])
