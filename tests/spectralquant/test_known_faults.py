"""Versions with known faults are found, and lower bounds of transformers hold per source."""

import importlib.metadata

import pytest

from spectralquant import diagnostics
from spectralquant.known_faults import FAULTS, TRANSFORMERS_FOR, faults_here, gguf_fault, parse_version


@pytest.fixture
def with_transformers(monkeypatch):
    real = importlib.metadata.version

    def install(version: str) -> None:
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: version if name == "transformers" else real(name)
        )

    return install


@pytest.mark.parametrize(
    "version,bad", [("5.17.0", True), ("5.17.1+cpu", True), ("5.18.0", False), ("5.23.0", False), ("6.0.0.dev0", False)]
)
def test_gemma_tokenizers_of_gguf_files(with_transformers, version, bad):
    with_transformers(version)
    assert [fault.package for fault, _ in faults_here()] == ["transformers"] * bad
    assert (gguf_fault("gemma3_text") is not None) == bad
    assert gguf_fault("llama") is None
    check = diagnostics.CHECKS["known faults"]()
    assert check.status == ("warn" if bad else "ok")
    assert ("transformers>=5.18" in check.fix) == bad


def test_too_old_is_a_failure_with_the_fix(with_transformers):
    with_transformers("5.9.1")
    check = diagnostics.CHECKS["transformers"]()
    assert (check.status, check.fix) == ("fail", "pip install --upgrade 'transformers>=5.17'")
    assert "5.17" in gguf_fault("llama")


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def broken():
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(diagnostics, "CHECKS", {"GPU": broken})
    assert [(c.name, c.status) for c in diagnostics.run_checks()] == [("GPU", "fail")]


def test_versions_are_read_as_numbers():
    assert parse_version("5.17.0.dev0") == (5, 17, 0) and parse_version("2.13.0+cpu") == (2, 13, 0)
    assert all(f.mended is None or f.first < f.mended for f in FAULTS)
    assert min(TRANSFORMERS_FOR.values()) >= (5, 17)
