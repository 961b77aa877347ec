"""The harness measures what it says: real reads through the codec, real bytes, exact tokens exact."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from spectralquant.errors import InputError, SpectralQuantError
from spectralquant.evaluation.measure import measure
from spectralquant.evaluation.needle import needle_retrieval
from spectralquant.evaluation.streaming import stream_window
from spectralquant.evaluation.tasks.needle import needle_trial
from spectralquant.methods.coding.none import Uncompressed
from spectralquant.methods.coding.turboquant import TurboQuant


@dataclass(frozen=True)
class _Coded:
    keys: torch.Tensor
    values: torch.Tensor
    nbytes: int = 1000


class Probe:
    """A codec that records the blocks it saw and changes them by a factor."""

    name = "probe"
    exact_bits = 16

    def __init__(self, factor):
        self.factor, self.options, self.blocks = factor, {}, []

    def encode(self, block):
        self.blocks.append((block.start, block.tokens, block.token_ids.tolist(), block.previous_id))
        return _Coded(block.keys * self.factor, block.values * self.factor)

    def decode(self, encoded):
        return encoded.keys, encoded.values


def ids(count=600, seed=0):
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed))


def test_identity_codec_reproduces_the_plain_model(small):
    tokens = ids()
    totals = stream_window(small.model, small.geometry, tokens, [Probe(1.0)])[0]
    with torch.no_grad():
        logits = small.model(input_ids=tokens[None]).logits[0, :-1].double()
    nll = functional.cross_entropy(logits, tokens[1:], reduction="sum").item()
    assert totals.tokens == 599
    assert totals.exact_nll == pytest.approx(nll, rel=1e-5)
    assert totals.nll == pytest.approx(nll, rel=1e-5) and totals.kl < 1e-4


def test_blocks_leave_after_the_next_block_and_without_sinks(small):
    tokens, probe = ids(), Probe(0.9)
    totals = stream_window(small.model, small.geometry, tokens, [probe])[0]
    assert [(s, n) for s, n, _, _ in probe.blocks] == [(4, 124), (128, 128), (256, 128), (384, 128)]
    for start, count, seen, previous in probe.blocks:
        assert seen == tokens[start : start + count].tolist() and previous == int(tokens[start - 1])
    assert totals.coded_tokens == 508 and totals.exact_tokens == 92 and totals.coded_bytes == 4000


def test_only_reads_from_beyond_the_recent_window_change(small):
    """Zeroing every coded block must leave the first 256 predictions untouched and change later ones."""
    short = stream_window(small.model, small.geometry, ids(256), [Probe(0.0)])[0]
    longer = stream_window(small.model, small.geometry, ids(500), [Probe(0.0)])[0]
    assert short.kl < 1e-6 < 1e-3 < longer.kl


def test_errors_accumulate_as_in_a_dense_recomputation(small):
    """The reference writes decoded blocks into a plain transformers cache and goes on from there."""
    from transformers import DynamicCache

    tokens, kl = ids(500), 0.0
    turbo = TurboQuant(16, bits=2)
    totals = stream_window(small.model, small.geometry, tokens, [turbo])[0]
    exact, coded = DynamicCache(), DynamicCache()
    with torch.no_grad():
        for start in range(0, 500, 128):
            part = tokens[None, start : start + 128]
            a = small.model(input_ids=part, past_key_values=exact).logits[0].log_softmax(-1)
            b = small.model(input_ids=part, past_key_values=coded).logits[0].log_softmax(-1)
            n = part.shape[1] - (start + 128 >= 500)
            kl += (a.exp() * (a - b)).sum(-1)[:n].sum().item()
            if start >= 128:
                part = slice(max(4, start - 128), start)
                for layer in coded.layers:
                    for name in ("keys", "values"):
                        x = getattr(layer, name)[0, :, part]
                        back = turbo.quantizers[0][0].decode(turbo.quantizers[0][0].encode(x.reshape(-1, 16)))
                        getattr(layer, name)[0, :, part] = back.view(x.shape)
    assert totals.kl == pytest.approx(kl, rel=1e-3)


def test_ratios_are_bytes_over_bytes(small):
    found = measure(small.model, small.geometry, ids(600).view(1, -1), [Probe(0.5)])[0]
    row = found.row(small.geometry, "m", 600)
    per_token = 2 * 2 * 3 * 2 * 16
    assert row["payload_ratio"] == pytest.approx(508 * per_token / (4000 + 64))
    assert row["whole_cache_ratio"] == pytest.approx(600 * per_token / (4064 + 92 * per_token))
    assert row["resident_ratio"] is None


def test_uncompressed_has_ratio_one_and_no_loss(small):
    found = measure(small.model, small.geometry, ids(512).view(1, -1), [Uncompressed()])[0]
    assert found.kl < 1e-3 and found.payload_ratio(small.geometry) == pytest.approx(1, rel=0.01)


def test_a_method_that_does_nothing_is_an_error(small):
    with pytest.raises(SpectralQuantError, match="left every key and value unchanged"):
        measure(small.model, small.geometry, ids(512).view(1, -1), [Probe(1.0)])


def test_windows_too_short_to_code_anything_are_refused(small):
    with pytest.raises(SpectralQuantError, match="Use at least 384"):
        measure(small.model, small.geometry, ids(300).view(1, -1), [Probe(0.5)])


def test_more_bits_are_better_and_the_interval_holds_the_mean(small):
    windows = torch.stack([ids(512, s) for s in range(6)])
    two, four = measure(small.model, small.geometry, windows, [TurboQuant(16, 2), TurboQuant(16, 4)])
    assert two.kl > 3 * four.kl
    row = two.row(small.geometry, "m", 512)
    assert row["kl_nats_ci95"][0] < row["kl_nats"] < row["kl_nats_ci95"][1]


def test_int8_window_is_really_rounded(small):
    method = TurboQuant(16, 4)
    rounded = TurboQuant(16, 4)
    rounded.exact_bits = 8
    plain, eight = measure(small.model, small.geometry, ids(512).view(1, -1), [method, rounded])
    assert eight.kl != plain.kl
    assert eight.whole_cache_ratio(small.geometry) > plain.whole_cache_ratio(small.geometry)


def test_needle_prompt_places_the_key_once_and_asks_at_the_end(small):
    trial = needle_trial(small.tokenizer, 600, 0.5, "12345")
    tokens, answer = trial.ids, trial.answer
    text = small.tokenizer.decode(tokens)
    assert len(tokens) == 600 and text.endswith("The pass key is 12345") and text.count("12345") == 3
    assert small.tokenizer.decode(tokens[-answer:]).strip() == "12345"
    with pytest.raises(InputError, match="too short"):
        needle_trial(small.tokenizer, 100, 0.5, "12345")


@pytest.mark.model
@pytest.mark.slow
def test_needle_retrieval_tells_good_from_ruined(builtin):
    ruined = needle_retrieval(builtin, [TurboQuant(64, 4), Probe(0.0)], 512, trials=3)
    assert ruined[0].exact_hits == 3 and ruined[0].hits >= 2 and ruined[1].hits == 0
