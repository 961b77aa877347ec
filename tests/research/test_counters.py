"""What `ncu` prints, read: kernels and bytes, or why there are none."""

import pytest

from research.generate.counters import CALLS, COUNTERS, counters_of
from spectralquant.errors import InputError

HEAD = f'"ID","Process ID","Kernel Name","{COUNTERS[0]}","{COUNTERS[1]}"'
UNITS = '"","","","byte","byte"'
KERNELS = CALLS["spectral_decode"]


def lines(*values):
    rows = [f'"{i}","7","{name}","{value}","64"' for i, (name, value) in enumerate(zip(KERNELS, values, strict=False))]
    return "\n".join(
        ["==PROF== Connected to process 7", "a line of the program", HEAD, UNITS, *rows, "==PROF== Disconnected"]
    )


def test_every_kernel_has_its_bytes():
    rows = counters_of(lines("1,024", "2048", "0"), "", KERNELS)
    assert [r["kernel"] for r in rows] == list(KERNELS)
    assert [r["bytes_read"] for r in rows] == [1024, 2048, 0] and rows[0]["bytes_write"] == 64


@pytest.mark.parametrize(
    ("text", "errors", "why"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM", "", "right to read counters"),
        ("", "no such GPU", "no such GPU"),
        (lines("1", "2"), "", "saw no reduce_kernel"),
        (lines("1", "n/a", "3"), "", "no number"),
        ("\n".join([HEAD, UNITS]), "", "saw no prepare_kernel"),
    ],
)
def test_what_is_missing_is_said(text, errors, why):
    with pytest.raises(InputError, match=why):
        counters_of(text, errors, KERNELS)
