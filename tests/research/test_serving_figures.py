"""The page's blocks on serving, from results of every part."""

from __future__ import annotations

from research.serving.decode_alone import results
from research.serving.engine_figures import _machine, _places
from research.serving.engines.rounds import Rounds, decoding_results
from research.serving.figures import _hot_speed
from research.serving.join import joined
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.results.files import results_file
from spectralquant.results.serving import ServingRow

FACTS = {"vllm": "0.26.0", "device": "H", "cuda": "13.0", "start_s": 1.0, "pages": 9}
ORDER = Order("m", {}, None, [Step("batch", "batch", Prompts("distinct", 8, 512), 100)])


def rounds(*rates: float) -> Rounds:
    figures = [{"tokens_per_s": r, "step_s": 8 / r, "connector_s": 1e-4} for r in rates]
    return Rounds(FACTS, [{"storing": one, "stored": one} for one in figures])


def part(rows, summary=None, **more):
    return results_file("serving", rows, {"command": "c"}, summary=summary or {}, settings={}, engine=FACTS, **more)


def test_every_part_is_on_the_page():
    same = {"prompts": 20, "prefix_tokens": 1000}
    small = part(
        [ServingRow(way="recompute", **same), ServingRow(way="lossless", same_text=0.9, kl_nats=0.001, **same)]
    )
    alike = {"lossless_same_text_as_engine_cache": 1.0, "lossless_kl_from_engine_cache_nats": 0.0}
    floor = part([small.rows[0], ServingRow(way="vllm-files", same_text=0.85, kl_nats=0.0015, **same)], alike)
    tp = {"hit_share": 1.0, "same_text": 1.0, "long_first_token_s": {"8192": 0.1}, "long_over_recompute": {"8192": 0.5}}
    ranks = part([ServingRow(way="lossless", **same, **tp)])
    done = {"recompute": rounds(100, 102), "vllm-tiers": rounds(98, 100), "spectral": rounds(97, 99)}
    decode = decoding_results(done, "recompute", "vllm-tiers", "spectral", ORDER, {})
    page = _machine(joined({"small": small, "tp": ranks, "floor": floor, "decode": decode}))
    assert "| vLLM's tier of files | 85 % | 0.00150 |" in page
    assert "100 % of the texts are the same, KL 0.00000." in page
    assert "| the tier, profile for serving | 98 (97 … 99) | 98 (97 … 99) | 81.641 | 0.100 |" in page
    assert "0.10 s to the first token, 0.50 times as long as computing it." in page
    assert "was not measured" not in page


def test_engines_alone_and_in_the_opposite_order_have_a_table_each():
    done = {"recompute": rounds(100, 102), "vllm-tiers": rounds(100, 102), "spectral": rounds(99, 101)}
    beside = done | {"spectral": rounds(97, 99)}
    page = _places(results(done, beside, ORDER, {}))
    alone, opposite = page.split("Decoding ")[1:]
    assert "alone on the GPU" in alone and "| the tier, profile for serving | 100 (99 … 101) |" in alone
    assert "opposite order" in opposite and "Over computing without a tier: -3.0 %" in opposite
    assert "opposite" not in _places(results(done, None, ORDER, {}))


def test_what_was_not_measured_is_said():
    row = ServingRow(way="recompute", prompts=20, prefix_tokens=1000)
    assert "vLLM's own tiers restored was not measured" in _machine(joined({"small": part([row])}))


def test_capacity_is_of_bf16_pages_and_what_was_cut_off_is_said():
    row = ServingRow(way="8b/hot pages", pages=400, decode_tokens_per_s={"8": 50.0})
    cut_off = part([row], faults=["8b/bf16 pages: cut off before it was measured"])
    cut_off = cut_off.model_copy(update={"settings": {"shape": "s", "long": 32768}})
    page = _hot_speed(cut_off)
    assert "| hot pages | 51,200 | – | 50 |" in page and "bf16 pages: cut off" in page
