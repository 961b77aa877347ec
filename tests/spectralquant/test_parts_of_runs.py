"""Runs that several processes share: each makes its units, and one puts the rows together."""

from __future__ import annotations

import pytest

from spectralquant.bench.generate.plan import Cell, GenerateRequest, cells_of, pair_of
from spectralquant.errors import BusyError, InputError
from spectralquant.results.part_of_run import PartOfRun, parse_part
from spectralquant.results.unfinished import UnfinishedRun

NAMES = [f"row {i}" for i in range(5)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path))


def rows(run, by: str) -> list[dict]:
    return [row for name in NAMES for row in run.value(name, lambda name=name: [{"name": name, "by": by}])]


def test_parts_share_the_work_and_the_run_puts_it_together():
    with PartOfRun("test", {"a": 1}, (1, 2)) as first:
        assert [row["name"] for row in rows(first, "1")] == ["row 0", "row 2", "row 4"]
    with PartOfRun("test", {"a": 1}, (2, 2)) as second:
        rows(second, "2")
    assert str(first.folder) in second.ending() and "--resume" in second.ending()
    with UnfinishedRun("test", {"a": 1}, resume=True) as whole:
        assert [row["by"] for row in rows(whole, "whole")] == ["1", "2", "1", "2", "1"]
        assert whole.facts() == {"resumed_parts": 5}
    assert not first.folder.exists()


def test_what_a_part_did_not_finish_is_made_at_the_end():
    with pytest.raises(KeyboardInterrupt), PartOfRun("test", {"a": 1}, (1, 2)) as first:
        first.value("row 0", lambda: [{"by": "1"}])
        raise KeyboardInterrupt
    with UnfinishedRun("test", {"a": 1}, resume=True) as whole:
        assert [row["by"] for row in rows(whole, "whole")] == ["1", *["whole"] * 4]


def test_a_part_and_the_whole_run_exclude_each_other_and_parts_do_not():
    said = []
    with PartOfRun("test", {"a": 1}, (1, 2)), PartOfRun("test", {"a": 1}, (2, 2)):
        with pytest.raises(BusyError, match="another process"), PartOfRun("test", {"a": 1}, (2, 2)):
            pass
        with UnfinishedRun("test", {"a": 1}, report=said.append) as whole:
            assert whole.folder is None and "another process works on the same run" in said[0]
    with UnfinishedRun("test", {"a": 1}), pytest.raises(BusyError, match="--part"), PartOfRun("test", {"a": 1}, (1, 2)):
        pass


def test_what_others_still_work_on_is_not_resumed():
    with PartOfRun("test", {"a": 1}, (1, 2)) as first:
        first.value("row 0", lambda: [{"by": "1"}])
        with (
            pytest.raises(BusyError, match=r"--resume: another process .* Wait until it has ended"),
            UnfinishedRun("test", {"a": 1}, resume=True),
        ):
            pass
    with UnfinishedRun("test", {"a": 1}, resume=True) as whole:
        assert rows(whole, "whole")[0]["by"] == "1"


def test_a_run_that_keeps_nothing_holds_nothing():
    with PartOfRun("test", {"a": 1}, (1, 2)), UnfinishedRun("test", {"a": 1}) as whole:
        assert whole.folder is None
        with PartOfRun("test", {"a": 1}, (2, 2)) as second:
            assert second.folder is not None


def test_a_part_whose_rows_cannot_be_kept_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BusyError, match="cannot be kept"), PartOfRun("test", {}, (1, 2)):
        pass


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/1", "a/b", "1/2/3", "-1/2", "1/100"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="first of two parts"):
        parse_part(text)


def test_cells_that_are_compared_stay_on_one_gpu():
    cells = list(cells_of(GenerateRequest(), gpu=True))
    units: dict[str, set] = {}
    for cell in cells:
        units.setdefault(pair_of(str(cell)), set()).add((cell.context, cell.batch))
    assert all(len(pairs) == 1 for pairs in units.values())
    assert pair_of(str(Cell("decode", "hot", 32768, 8))) == pair_of(str(Cell("decode", "static_compiled", 32768, 8)))
