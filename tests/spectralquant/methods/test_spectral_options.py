"""Every option of `spectral` reaches what codes, alone and behind an evicting method."""

import pytest
import torch
from conftest import profile_of

from spectralquant.evaluation.streaming import stream_window
from spectralquant.methods.coding import spectral
from spectralquant.methods.context import MethodContext
from spectralquant.methods.registry import parse
from spectralquant.profile.promises import ErrorLimits


def method(text):
    loaded, profile = profile_of("llama")
    [spec] = parse(text)
    return spec.build(MethodContext(loaded, profile))


@pytest.mark.parametrize("tier", ["cold", "warm", "hot"])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_width_of_exact_tokens_reaches_a_composed_method(tier, bits):
    composed = method(f"h2o+spectral:keep=0.5,tier={tier},exact_bits={bits}")
    assert composed.exact_bits == composed.codec.exact_bits == bits
    assert composed.for_layers((0, 1, 2)).exact_bits == bits
    assert composed.options.get("exact_bits", 16) == bits


@pytest.mark.parametrize("bound", ["", ",bound=0.01"])
def test_adaptive_tables_go_with_a_bound(bound, monkeypatch):
    """They were dropped there; blocks of both kinds are read back, and some really have shifted tables."""
    monkeypatch.setattr(spectral, "error_limits", lambda summary, kl: ErrorLimits(1e9, 1e9))
    coded = {flag: method(f"spectral:adaptive_tables={flag},step_scale=0.5{bound}") for flag in ("true", "false")}
    assert coded["true"].options["adaptive_tables"] is True and "adaptive_tables" not in coded["false"].options
    assert all((c.codec.bound is not None) == bool(bound) and c.codec.step_scale == 0.5 for c in coded.values())
    loaded, _ = profile_of("llama")
    ids = torch.randint(5, 20, (900,), generator=torch.Generator().manual_seed(0))  # unlike what tables were fitted to
    adaptive, usual = stream_window(loaded.model, loaded.geometry, ids, list(coded.values()))
    assert adaptive.coded_bytes < usual.coded_bytes
    assert adaptive.kl == pytest.approx(usual.kl, rel=1e-3), "tables change bytes alone"
