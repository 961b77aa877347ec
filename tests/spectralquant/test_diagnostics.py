"""`sq doctor`: which coder packets are coded with on a CPU."""

import pytest

from spectralquant.diagnostics import CHECKS
from sqkernels.entropy import native
from sqkernels.entropy.compiled import NotCompiledError


@pytest.mark.skipif(not native.available(), reason="no C compiler")
def test_a_compiled_coder_is_told():
    check = CHECKS["CPU coder"]()
    assert (check.status, check.found) == ("ok", "compiled")


def test_without_a_compiler_doctor_says_why_and_what_to_install(monkeypatch):
    monkeypatch.setattr(native, "library", lambda source: NotCompiledError("no C compiler on the PATH"))
    check = CHECKS["CPU coder"]()
    assert check.status == "warn" and "no C compiler on the PATH" in check.found and "gcc" in check.fix


@pytest.mark.skipif(not native.available(), reason="no C compiler")
def test_a_cc_that_is_not_there_is_told_though_another_compiled(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    check = CHECKS["CPU coder"]()
    assert check.status == "warn" and check.found == "compiled; CC=no-such-compiler is not on the PATH" and check.fix


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("SPECTRALQUANT_COMPILE=no forbids it", "Unset SPECTRALQUANT_COMPILE"),
        ("CC=x is not on the PATH; no C compiler (cc, gcc or clang) on the PATH", "Install gcc or clang"),
        ("/bin/false failed: exit status 1, without a word", "Repair that compiler"),
        ("PermissionError: [Errno 13] Permission denied: '/x/compiled'", "SPECTRALQUANT_CACHE"),
    ],
)
def test_every_reason_has_its_fix(monkeypatch, reason, fix):
    monkeypatch.setattr(native, "library", lambda source: NotCompiledError(reason))
    check = CHECKS["CPU coder"]()
    assert check.found == f"numpy ({reason})" and fix in check.fix
