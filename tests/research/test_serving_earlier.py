"""Parts of the serving study that a run did not come to are taken from an earlier file, each with its own provenance."""

from __future__ import annotations

import pytest

from research.results.stale import RESULTS
from research.serving.earlier import completed, main, parts_of
from research.serving.join import joined
from research.serving.study import PARTS
from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.results.files import read_results, results_file
from spectralquant.results.serving import ServingRow

FIGURES = {
    "small": {"kl_nats": 0.01, "restore_over_recompute_8k": 5.0},
    "large": {"restore_over_recompute_8k": 0.7},
    "floor": {"floor_recompute_again_kl_nats": 0.0, "lossless_kl_from_engine_cache_nats": 0.0},
    "decode": {"decode_over_recompute": 0.97},
    "tp": {},
}


def part(name: str, commit: str, device: str = "H"):
    row = ServingRow(way="spectral", prompts=4, prefix_tokens=100, same_text=1.0, hit_share=1.0)
    return results_file(
        "serving",
        [row],
        {"command": "sq study serving", "git_commit": commit, "device": device},
        summary=FIGURES[name],
        settings={"name": name},
        engine={"device": device},
        faults=[f"{name}!"],
    )


def whole(commit: str, *names: str, device: str = "H"):
    return joined({name: part(name, commit, device) for name in names})


def test_a_file_comes_apart_as_it_was_joined():
    file = whole("a", *PARTS)
    again = joined(parts_of(file))
    assert again.as_json() == file.as_json()


def test_parts_that_are_missing_are_taken_and_no_other(tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    write_json(new, whole("new", "small", "floor").as_json())
    write_json(old, whole("old", "small", "large").as_json())
    assert main(str(new), str(old)) == 0
    file = read_results(new)
    assert {name: part["provenance"]["git_commit"] for name, part in file.settings.items()} == {
        "small": "new",
        "floor": "new",
        "large": "old",
    }
    assert file.summary["restore_over_recompute_8k"] == 0.7 and file.summary["kl_nats"] == 0.01
    assert sorted(row.way for row in file.rows) == ["8b/spectral", "floor/spectral", "spectral"]
    assert file.faults == ["small!", "8b/large!", "floor/floor!"]


def test_what_cannot_stand_side_by_side_is_refused(capsys, tmp_path):
    with pytest.raises(InputError, match="of H, the other of other"):
        completed(whole("a", "small"), whole("b", "large", device="other"))
    with pytest.raises(InputError, match="nothing to take"):
        completed(whole("a", "small", "large"), whole("b", "large"))
    with pytest.raises(InputError, match="no file of `sq study serving`"):
        completed(part("small", "a"), whole("b", "large"))
    with pytest.raises(InputError, match=r"sq study headline.* wrote no file of `sq study serving`"):
        completed(whole("a", "small"), read_results(RESULTS / "headline.json"))
    assert main(str(tmp_path / "none.json"), "x") == 2
    assert "There is no results file" in capsys.readouterr().err
    assert main("x") == 2 and "OUT EARLIER" in capsys.readouterr().err
    write_json(tmp_path / "a.json", whole("a", "small").as_json())
    assert main(str(tmp_path / "a.json"), str(tmp_path / "a.json")) == 2
    assert "are the same file" in capsys.readouterr().err
