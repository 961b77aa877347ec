"""A profile that pages cannot be made of is refused before an engine is there; no engine needed."""

from __future__ import annotations

import sys

import pytest
from conftest import profile_of

from spectralquant.errors import InputError, ProfileError
from spectralquant.integrations.vllm.hot.profile import pages_profile, pages_tier
from spectralquant.integrations.vllm.hot.select import select_hot_backend
from spectralquant.integrations.vllm.hot.variable import VARIABLE


@pytest.fixture
def without_hot(tmp_path):
    profile = profile_of("llama")[1]
    path = tmp_path / "cold"
    kept = {name: tier for name, tier in profile.sidecar.tiers.items() if name != "hot"}
    tiers = {name: tier for name, tier in profile.tiers.items() if name != "hot"}
    type(profile)(profile.sidecar.model_copy(update={"tiers": kept}), profile.heads, tiers).save(path)
    return path


def test_the_plugin_refuses_a_profile_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    with pytest.raises(InputError, match=rf"{VARIABLE} is set to .*none.*There is no profile"):
        select_hot_backend()


def test_the_plugin_refuses_a_profile_without_a_hot_tier(without_hot, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(without_hot))
    with pytest.raises(InputError, match="no hot tier"):
        select_hot_backend()


def test_without_the_variable_the_plugin_does_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    monkeypatch.delenv(VARIABLE, raising=False)
    select_hot_backend()
    monkeypatch.setenv(VARIABLE, "")
    select_hot_backend()


def test_a_hot_tier_that_keeps_layers_apart_is_refused():
    with pytest.raises(ProfileError, match="keeps layers apart"):
        pages_tier(profile_of("gemma3_text")[1])


def test_a_profile_for_caches_is_refused(tmp_path, small_profile):
    small_profile.save(tmp_path / "caches")
    with pytest.raises(ProfileError, match="--for serving"):
        pages_profile(str(tmp_path / "caches"))
