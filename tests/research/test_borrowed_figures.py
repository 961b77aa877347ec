"""Figures of a summary that another file measured are that file's, and the file says so."""

import json

import pytest

from research.results.borrowed import SOURCES, borrow, with_borrowed
from research.results.stale import RESULTS
from research.results.table import TABLE, Entry, entry

BORROWING = [e for e in TABLE if e.borrows]
OURS = Entry("ours", "", "cpu", 1, borrows=(("capacity", ("pages", "pages_over_bf16")), ("speed", ("none", "x"))))


def write(file, summary, commit, **more):
    file.write_text(json.dumps({"provenance": {"git_commit": commit}, "summary": summary, **more}))
    return file


def test_a_figure_is_taken_with_where_it_is_from(tmp_path):
    file = write(tmp_path / "ours.json", {"capacity": None, "speed": None, "own": 1}, "a", settings={"text": "t"})
    write(tmp_path / "pages.json", {"pages_over_bf16": 3.5}, "b")
    assert borrow(file, OURS, (tmp_path,)) and not borrow(file, OURS, (tmp_path,))
    done = json.loads(file.read_text())
    assert done["summary"] == {"capacity": 3.5, "speed": None, "own": 1}
    source = {"figures": {"capacity": "pages_over_bf16"}, "provenance": {"git_commit": "b"}}
    assert done["settings"] == {"text": "t", SOURCES: {"pages.json": source}}
    assert done["provenance"] == {"git_commit": "a"}


def test_a_newer_file_of_the_first_folder_is_taken(tmp_path):
    build, stored = tmp_path / "build", tmp_path / "stored"
    for folder, x in ((build, 4.0), (stored, 3.0)):
        folder.mkdir()
        write(folder / "pages.json", {"pages_over_bf16": x}, "b")
    result = {"summary": {"capacity": 3.0}}
    assert with_borrowed(result, OURS, (build, stored))["summary"]["capacity"] == 4.0
    assert with_borrowed(result, OURS, (tmp_path, stored))["summary"]["capacity"] == 3.0
    assert with_borrowed(result, OURS, (tmp_path,)) is result


@pytest.mark.parametrize("borrowing", BORROWING, ids=lambda e: e.name)
def test_stored_files_have_what_their_sources_say(borrowing):
    stored = json.loads((RESULTS / f"{borrowing.name}.json").read_text())
    assert with_borrowed(stored, borrowing, (RESULTS,)) == stored, "run `python -m research.results.borrowed`"
    for name, (other, figure) in borrowing.borrows:
        source = json.loads((RESULTS / f"{other}.json").read_text())
        assert stored["summary"][name] == source["summary"][figure]
        assert stored["provenance"]["device"] == source["provenance"]["device"]
        assert entry(other).needs == borrowing.needs
