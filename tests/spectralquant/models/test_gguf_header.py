"""The header of GGUF files, and which of them this version of transformers may read."""

from __future__ import annotations

import importlib.metadata

import gguf
import numpy as np
import pytest

from spectralquant.errors import SourceError
from spectralquant.models.gguf.header import gguf_metadata
from spectralquant.models.gguf.load import load_gguf


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_string("general.name", "Straße")
    writer.add_token_list(["<pad>", "<eos>", "<bos>", "a" * 300])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.nested", ["x", "y"])
    writer.add_bos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_float32("some.rate", 0.5)
    writer.add_tensor("t", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_scalars_are_read_and_arrays_are_skipped(file):
    assert gguf_metadata(file) == {
        "general.architecture": "gemma3",
        "general.name": "Straße",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "some.rate": 0.5,
    }


@pytest.mark.parametrize("length", [0, 3, 20, 30, 60, 150, 400])
def test_cut_files_are_refused(file, length):
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(SourceError, match=r"not a .*GGUF file"):
        gguf_metadata(file)


def test_lengths_are_bounded_by_the_file(file):
    data = bytearray(file.read_bytes())
    at = data.index("Straße".encode())
    data[at - 8 : at] = (1 << 60).to_bytes(8, "little")
    file.write_bytes(data)
    with pytest.raises(SourceError, match="header ends early or is damaged"):
        gguf_metadata(file)


def test_versions_that_read_a_source_wrongly_are_refused(file, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: "5.17.0" if n == "transformers" else real(n))
    with pytest.raises(
        SourceError, match=r"m.gguf is not used: transformers 5.17.0 reads GGUF files of gemma3 models wrongly"
    ):
        load_gguf(file, dtype="float32")
