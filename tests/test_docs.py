"""The pages name what is there, and their examples run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import profile_of

import spectralquant as sq
from spectralquant.profile.model import CalibrationProfile

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Words of planning, and names of things that a reader does not know.
UNWANTED = re.compile(r"\b(moonshot|roadmap|milestone|TODO|FIXME|the seed of this project)\b", re.I)


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    assert [n for n in sq.__all__ if not re.search(rf"(\.|`){n}(`|\n)", text)] == []


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {str(p.relative_to(ROOT / "docs")) for p in PAGES}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_pages_hold_no_words_of_planning(path):
    assert not UNWANTED.findall(path.read_text())


@pytest.mark.parametrize("path", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_examples_are_python(path):
    for code in snippets(str(path.relative_to(ROOT))):
        compile(code, path.name, "exec")


def test_the_page_on_serving_works_as_it_stands(tmp_path, monkeypatch):
    """On a small random model, in the order of the page."""
    loaded, profile = profile_of("llama")
    monkeypatch.setattr("spectralquant.models.load.load_model", lambda name: loaded)
    monkeypatch.setattr(CalibrationProfile, "load", lambda path: profile)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "profiles" / "results" / "profile-h100.json", "speed.json")
    pool, packets, working, hybrid = snippets("docs/how-to/serve.md")
    names = {"path": tmp_path / "session.sqkv"}
    exec(pool, names)
    ids = torch.randint(0, 512, (1, 400), generator=torch.Generator().manual_seed(0))
    output, stats = names["answer"]({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert output.shape[1] > 400 and stats.payload_ratio > 2
    names["cache"] = cache = sq.SpectralCache(loaded.model, profile, tier="hot", pool=names["pool"])
    with torch.no_grad():
        loaded.model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    exec(packets, names)
    assert names["cache"] is not cache and names["cache"].get_seq_length() == 400
    exec(working, names)
    assert names["cache"].get_seq_length() == 400
    exec(hybrid, names)
    assert names["cache"].options["compress_from"] > 1
