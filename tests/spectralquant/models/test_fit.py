"""Token ids and lengths that do not fit a model are refused before it runs."""

import pytest
import torch
from conftest import SMALL_CALIBRATION, profile_of, random_model, small_tokenizer

from spectralquant import pack_prompt
from spectralquant.cache.generation import GenerationOptions, generate_text
from spectralquant.calibrating.api import calibrate_model
from spectralquant.errors import InputError
from spectralquant.evaluation.compare import QUICK, Comparison
from spectralquant.evaluation.needle import needle_retrieval
from spectralquant.evaluation.streaming import stream_window
from spectralquant.hooks.decoder import position_limit
from spectralquant.methods.context import MethodContext
from spectralquant.models.limits import require_known_ids, require_positions
from spectralquant.models.load import LoadedModel
from spectralquant.models.probe import probe_geometry
from spectralquant.text.read import load_text
from spectralquant.text.tokens import tokenize

UNKNOWN = "embeddings for ids 0 to"


def few_embeddings() -> LoadedModel:
    model = random_model(vocab_size=480)
    return LoadedModel("few", model, small_tokenizer(), probe_geometry(model))


def test_ids_at_the_edge():
    model = few_embeddings().model
    require_known_ids(model, torch.tensor([[0, 479]]))
    require_known_ids(model, torch.zeros(1, 0, dtype=torch.int64))
    for bad in (480, -1):
        with pytest.raises(InputError, match=f"token id {bad}, but"):
            require_known_ids(model, torch.tensor([[3, bad]]))


def test_calibrating_comparing_and_scoring_refuse_unknown_ids():
    loaded = few_embeddings()
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    assert text.ids.max() >= 480
    with pytest.raises(InputError, match=UNKNOWN):
        calibrate_model(loaded, text, SMALL_CALIBRATION)
    with pytest.raises(InputError, match=UNKNOWN):
        Comparison(MethodContext(loaded), {512: text.windows(512, 2)}, QUICK, "text")
    with pytest.raises(InputError, match=UNKNOWN):
        stream_window(loaded.model, loaded.geometry, torch.full((512,), 480), [])
    with pytest.raises(InputError, match=UNKNOWN):
        needle_retrieval(loaded, [], 512, trials=1)


def test_packing_and_generating_refuse_unknown_ids():
    loaded, profile = profile_of("llama")
    with pytest.raises(InputError, match=UNKNOWN):
        pack_prompt(loaded.model, profile, torch.full((1, 300), 512))
    tokenizer = small_tokenizer().__class__(
        tokenizer_object=small_tokenizer().backend_tokenizer.__class__.from_str(
            small_tokenizer().backend_tokenizer.to_str()
        )
    )
    tokenizer.add_tokens(["zebra"])
    with pytest.raises(InputError, match=UNKNOWN):
        generate_text(
            LoadedModel("more", loaded.model, tokenizer, loaded.geometry), profile, "zebra", GenerationOptions()
        )


def test_lengths_beyond_the_models_positions():
    loaded, profile = profile_of("llama")
    with pytest.raises(InputError, match="4,096 positions"):
        pack_prompt(loaded.model, profile, torch.zeros(1, 4097, dtype=torch.int64))
    with pytest.raises(InputError, match="4,096 positions"):
        generate_text(loaded, profile, "a", GenerationOptions(new_tokens=4096))
    model = random_model("gpt2", max_position_embeddings=256)
    assert position_limit(model) == 256
    with pytest.raises(InputError, match="A window has 257 tokens"):
        require_positions(model, 257, "A window", "Shorten it.")
    text = tokenize(small_tokenizer(), load_text("builtin:pydoc"), 10_000)
    small = LoadedModel("short", model, small_tokenizer(), probe_geometry(model))
    with pytest.raises(InputError, match="256 positions"):
        calibrate_model(small, text, SMALL_CALIBRATION)
    with pytest.raises(InputError, match="256 positions"):
        Comparison(MethodContext(small), {512: text.windows(512, 2)}, QUICK, "text")


def test_dynamic_scaling_has_no_limit():
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    assert position_limit(random_model(max_position_embeddings=512, rope_parameters=rope)) is None
