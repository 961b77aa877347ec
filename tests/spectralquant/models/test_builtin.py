"""Built-in models: fetched by pip from wheels, joined, checked, converted once."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import zipfile

import pytest
import torch

from spectralquant.errors import ProfileError, SourceError
from spectralquant.models.builtin import folder as module
from spectralquant.models.builtin.fetch import fetch_gguf
from spectralquant.models.builtin.table import BUILTIN_MODELS, GEMMA3, BuiltinModel
from spectralquant.models.config import load_config
from spectralquant.models.foreign import refuse_foreign_model
from spectralquant.models.load import load_model
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

PARTS = (b"first half, ", b"second half")
SMALL = BuiltinModel(
    name="small",
    wheels=("a-small-part1==1.0", "a-small-part2==1.0"),
    members=("a_small_part1/x.part0", "a_small_part2/x.part1"),
    sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
    megabytes=1,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=16,
    terms="These are the terms.",
)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Two real wheels in a folder that pip takes for its only index."""
    for number, data in enumerate(PARTS, 1):
        name = f"a_small_part{number}"
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/x.part{number - 1}", data)
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    return work


def test_wheels_are_joined_and_removed(index):
    file = fetch_gguf(SMALL, index)
    assert file.read_bytes() == b"".join(PARTS) and list(index.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "expected 000.*download is damaged"),
        ({"members": ("a_small_part1/x.part0", "a_small_part2/y")}, r"a_small_part2-1.0-py3-none-any.whl is damaged"),
        ({"wheels": ("a-small-part1==1.0", "a-small-part9==1.0")}, "could not be fetched .*a-small-part9"),
    ],
)
def test_damaged_downloads_are_refused(index, change, message):
    with pytest.raises(SourceError, match=message):
        fetch_gguf(dataclasses.replace(SMALL, **change), index)


def test_it_is_fetched_once_with_its_terms(index, tmp_path, monkeypatch, capsys):
    def convert(gguf, target):
        target.mkdir()
        (target / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setenv("SPECTRALQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BUILTIN_MODELS, "builtin:small", SMALL)
    monkeypatch.setattr(module, "convert_gguf", convert)
    with pytest.raises(SourceError, match="--offline forbids"):
        module.builtin_folder("builtin:small", offline=True)
    said: list[str] = []
    folder = module.builtin_folder("builtin:small", report=said.append)
    assert (folder / "config.json").read_bytes() == b"".join(PARTS)
    assert (folder / "TERMS.txt").read_text() == "These are the terms.\n"
    assert capsys.readouterr().err == "These are the terms.\n" and "Fetching small (1 MB)" in said[0]
    assert module.builtin_folder("builtin:small", offline=True, report=said.append) == folder
    assert capsys.readouterr().err == "" and len(said) == 2
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == ["small"]


def test_unknown_names_and_old_versions_are_refused(monkeypatch):
    with pytest.raises(SourceError, match=r"there is builtin:smollm2-135m, builtin:gemma3-270m.*Did you mean"):
        module.builtin_folder("builtin:gemma3-27m")
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "5.22.0" if n == "transformers" else real(n))
    with pytest.raises(
        SourceError,
        match=r"gemma3-270m is not used: it needs transformers 5.23 or newer .* this is 5.22.0.*pip install",
    ):
        module.builtin_folder("builtin:gemma3-270m")


def test_the_table_is_whole():
    for model in BUILTIN_MODELS.values():
        assert len(model.wheels) == len(model.members) and len(model.sha256) == 64
    assert len(GEMMA3.wheels) == 4 and "Gemma Terms of Use" in GEMMA3.terms


@pytest.mark.model
@pytest.mark.slow
def test_gemma_is_what_it_should_be():
    loaded = load_model("builtin:gemma3-270m", device="cpu")
    geometry, config = loaded.geometry, loaded.model.config
    assert (geometry.layers, geometry.heads, geometry.kv_heads, geometry.head_dim) == (18, 4, 1, 256)
    assert (GEMMA3.layers, GEMMA3.heads, GEMMA3.kv_heads, GEMMA3.head_dim) == (18, 4, 1, 256)
    assert config.sliding_window == 512
    assert [kind == "full_attention" for kind in config.layer_types] == [(i + 1) % 6 == 0 for i in range(18)]
    text = tokenize(loaded.tokenizer, load_text("builtin:pydoc"), 1200)
    ids = text.windows(600, 1)
    assert ids[0, 0] == loaded.tokenizer.bos_token_id == 2

    def perplexity(ids):
        with torch.no_grad():
            logits = loaded.model(input_ids=ids).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).exp().item()

    assert perplexity(ids) < 40
    assert perplexity(ids[:, 1:]) > 1.2 * perplexity(ids)


def test_a_foreign_built_in_model_is_refused_before_it_is_fetched(small, small_profile, monkeypatch):
    monkeypatch.setattr("spectralquant.models.config.builtin_folder", lambda *_, **__: pytest.fail("fetched"))
    for name in BUILTIN_MODELS:
        with pytest.raises(ProfileError, match="its number of layers is"):
            refuse_foreign_model(small_profile.sidecar.model, name, offline=False)


def test_the_shape_that_is_known_before_is_the_models():
    config = load_config("builtin:smollm2-135m")
    known = BUILTIN_MODELS["builtin:smollm2-135m"]
    assert (known.layers, known.heads, known.kv_heads) == (
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
    )
    assert known.head_dim == config.hidden_size // config.num_attention_heads
