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
