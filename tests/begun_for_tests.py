"""For tests of what a command began with: each test is a process that no command has begun in."""

import pytest


@pytest.fixture(autouse=True)
def nothing_begun(monkeypatch):
    monkeypatch.setattr("spectralquant.origin.checkout._begun", [])
