"""One schema for all results files: typed, strict where written, patient where read."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from spectralquant.cache.report.stats import CacheStats
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.results.base import undeclared
from spectralquant.results.caches import CacheRow
from spectralquant.results.files import read_results, results_file
from spectralquant.results.quality import MethodRow
from spectralquant.results.schema import KINDS
from spectralquant.results.studies import ArchitectureRow

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted([*(ROOT / "profiles/results").glob("*.json"), *(ROOT / "profiles/baselines").glob("*.json")])


def plain(value):
    """Numbers as floats: 1 and 1.0 are the same figure."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("file", STORED, ids=lambda p: p.name)
def test_files_written_before_are_read_whole_and_written_the_same(file):
    result = read_results(file)
    assert undeclared(result) is None, "every field that was ever written is declared"
    assert plain(result.as_json()) == plain(json.loads(file.read_text()))
    assert type(result) is KINDS[result.name]


def test_a_field_that_is_not_declared_is_not_written():
    with pytest.raises(ValueError, match=r"ComparedRow\.kl_nat is not declared"):
        results_file("compare", [{"method": "x", "kl_nat": 0.1}], {})
    with pytest.raises(ValueError, match=r"CompareResults\.colour is not declared"):
        results_file("compare", [], {}, colour="red")
    with pytest.raises(ValueError, match=r"ScaleRow\.second is not declared"):
        results_file("calibrate-scale", [{"part": "8b", "second": 1.0}], {})
    speed = {"what": "decode", "model": "m", "context": 1, "batch": 1, "fp16_bytes": 1, "seconds": 1.0, "gb_s": 1.0}
    with pytest.raises(ValueError, match=r"SpeedRow\.median is not declared"):
        results_file("cold-speed", [speed | {"median": 1.0}], {})
    with pytest.raises(ValueError, match="method"):
        results_file("compare", [{"kl_nats": 0.1}], {})


def test_a_row_of_a_cache_declares_all_that_a_cache_tells():
    assert {field.name for field in fields(CacheStats)} <= CacheRow.model_fields.keys()


def test_a_field_of_a_later_version_is_kept(tmp_path):
    write_json(tmp_path / "r.json", {**results_file("compare", [{"method": "x"}], {}).as_json(), "later": [1]})
    result = read_results(tmp_path / "r.json")
    assert result["later"] == [1] and result.as_json()["later"] == [1]


def test_rows_read_by_attribute_and_by_name_and_show_what_is_set():
    row = MethodRow(method="x", kl_nats=0.5)
    row["top1"] = 0.9
    assert row.kl_nats == row["kl_nats"] == row.get("kl_nats") == 0.5 and row.top1 == 0.9
    assert dict(row.items()) == {"method": "x", "kl_nats": 0.5, "top1": 0.9} == row.as_json() == {**row}
    assert "failed" not in row and row.failed is None and row.get("failed", 3) == 3
    with pytest.raises(KeyError):
        row["failed"]
    assert row.updated(text="a").text == "a" and row.text is None


def test_names_that_python_reserves_are_spelt_as_before():
    row = ArchitectureRow.model_validate(
        {"name": "a", "model_type": "b", "what": "c", "class": "D", "outcome": "right", "seconds": 1.0}
    )
    assert row.model_class == row["class"] == row.as_json()["class"] == "D"


def test_figures_that_are_no_numbers_come_back_as_none(tmp_path):
    write_json(tmp_path / "r.json", results_file("compare", [{"method": "x", "kl_nats": float("nan")}], {}).as_json())
    assert read_results(tmp_path / "r.json").rows[0].kl_nats is None


def test_an_unknown_kind_names_the_nearest(tmp_path):
    write_json(tmp_path / "r.json", {"schema_version": 1, "kind": "spectralquant.compar", "provenance": {}, "rows": []})
    with pytest.raises(InputError, match="compare"):
        read_results(tmp_path / "r.json")
