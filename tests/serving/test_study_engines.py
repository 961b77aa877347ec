"""Engines of `sq study serving` beside `serve_check`'s, on vLLM's CPU build with a small random model."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from research.serving.engines.rounds import Turns, decoding_results, take_turns
from research.serving.floor import Floor, floor_study
from spectralquant.errors import InputError
from spectralquant.integrations.serve_check.machine import engine_arguments
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.ways import LOSSLESS, RECOMPUTE, ours

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", **sizes, num_key_value_heads=2, head_dim=32, vocab_size=512)
    folder = tmp_path_factory.mktemp("model")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def engine():
    return engine_arguments(1024, eager=True)[0] | {"skip_tokenizer_init": True}


def test_every_way_that_keeps_all_bits_gives_the_same_texts(model, engine, tmp_path):
    floor = Floor(str(model), "small", 2, 500, new=4, own_tiers=False, cpu_bytes=0, engine=engine)
    result = floor_study(floor, tmp_path, print)
    assert [row.way for row in result.rows] == ["recompute", "recompute-again", "engine-cache", LOSSLESS]
    again, cached, restored = result.rows[1:]
    assert again.cached_tokens_share == 0 and cached.cached_tokens_share > 0.9 and restored.cached_tokens_share > 0.9
    assert [row.same_text for row in result.rows[1:]] == [1, 1, 1] and not result.faults
    assert result.summary["lossless_same_text_as_engine_cache"] == 1


def test_engines_take_turns_and_each_round_has_prompts_of_its_own(model, engine, tmp_path):
    store = tmp_path / "store"
    order = Order(str(model), engine, None, [Step("batch", "batch", Prompts("distinct", 2, 150), 140)])
    transfer = ours(store, 1 << 30, LOSSLESS, "cpu")
    orders = {RECOMPUTE: order, LOSSLESS: Order(order.model, engine, transfer, order.steps)}
    kept = []
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Turns(name, one, tmp_path)) for name, one in orders.items()}
        done = take_turns(engines, 2, print, lambda rounds: kept.append(len(rounds[LOSSLESS].rounds)))
        with pytest.raises(InputError, match="The engine of lossless ended"):
            engines[LOSSLESS].tell("no number")
    assert kept == [1, 2]
    assert (
        len(list(store.rglob("*.sqchunk"))) == 3 * 2
    )  # two rounds and the first, of two prompts with one whole chunk each
    result = decoding_results(done, RECOMPUTE, LOSSLESS, LOSSLESS, order, {})
    assert all(min(rates) > 0 for row in result.rows for rates in row.decode_samples_tokens_per_s.values())
    assert result.rows[0].decode_connector_s["stored"] == 0 < result.rows[1].decode_connector_s["stored"]
