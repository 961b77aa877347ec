"""The index in the summary of `sq profile --generate`: of rows within the bytes the one of least KL."""

import pytest

from research.generate.with_index import bytes_share, index_summary
from spectralquant.results.quality import MethodRow


def row(share, kl):
    options = {"share": share}
    return MethodRow(method="spectral", options=options, kl_nats=kl, index_share_of_fp16=0.03, codes_share_of_fp16=0.25)


def test_the_best_row_within_the_bytes_is_taken():
    rows = [row(1.0, 0.003), row(0.08, 0.02), row(0.079, 0.015), row(0.03, 0.04)]
    assert bytes_share(rows[1]) == pytest.approx(0.05)
    assert index_summary(rows) == {"index_kl_nats": 0.015, "index_bytes_share": pytest.approx(0.04975)}
    assert index_summary(rows[:1]) == {"index_kl_nats": 0.003, "index_bytes_share": pytest.approx(0.28)}
