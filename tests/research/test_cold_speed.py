"""The study of packets' speed on a tiny shape: what it decodes is right, and its results are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from conftest import profile_of

from research.coder.symbols import SymbolSample
from research.cold_speed.codec import check, codec_rows, make_bench
from research.cold_speed.sample import SpeedSample, geometry_of, tier_of
from research.cold_speed.summary import summary_of
from spectralquant.cache.persist.prompt import pack_prompt, profile_codecs
from spectralquant.models.shapes import ModelShape, parse_shape
from spectralquant.results.files import results_file
from sqcli.html.report import report_page
from sqcli.terminal.study import study_view

SHAPE = "custom:layers=4,heads=4,kv_heads=2,head_dim=32,hidden=128,vocab=512"


def sample() -> tuple[SpeedSample, ModelShape]:
    loaded, profile = profile_of("llama")
    ids = torch.randint(5, 500, (1, 900), generator=torch.Generator().manual_seed(0))
    packet = pack_prompt(loaded.model, profile, ids)[0]
    codec = profile_codecs(loaded.model, profile, loaded.geometry.groups)[0]
    symbols = SymbolSample.of_packet(codec, packet, "a test")
    return SpeedSample(symbols, ids[0]), ModelShape.of_config("small", loaded.model.config)


def test_a_bench_decodes_and_encodes_what_it_says(tmp_path):
    drawn, own = sample()
    drawn.save(tmp_path / "sample.npz")
    again = SpeedSample.load(tmp_path / "sample.npz")
    assert torch.equal(again.symbols.symbols, drawn.symbols.symbols) and torch.equal(again.ids, drawn.ids)
    shape = parse_shape(SHAPE)
    bench = make_bench(again, own, shape, 256, 2, torch.device("cpu"))
    checked = check(bench)
    assert checked["relative_error"] < 1.2 * checked["of_rounding_to_bfloat16"] + 1e-4
    rows = codec_rows(bench)
    assert [r["what"] for r in rows] == ["decode", "encode"]
    assert all(r["raw_blocks"] == 0 for r in rows if r["what"] == "encode")
    written = sum(map(len, bench.blocks))
    assert abs(rows[1]["bytes_again"] / written - 1) < 0.2
    shown = [*rows, rows[0] | {"what": "prefill"}, rows[0] | {"what": "prefill", "context": 512}]
    facts = {"device": "here", "made": "so"}
    result = results_file("cold-speed", shown, facts, checks={"one": checked}, summary=summary_of(rows))
    assert study_view(result)[0].row_count == 4
    page = report_page([(Path("cold.json"), result)]).render()
    assert "time to the first token" in page and "<svg" in page


def test_a_basis_has_the_shapes_rank_and_energy():
    drawn, own = sample()
    shape = parse_shape(SHAPE)
    scaled = drawn.at(shape, own, 4)
    tier = tier_of(scaled, geometry_of(shape), shape.hidden, torch.device("cpu"))
    rows = tier.key.analysis.float()
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=2e-3)
    energy = float((tier.key.back.square() * tier.key.variance).sum() / len(tier.key.mean))
    assert np.isclose(energy, 1.0, rtol=1e-3)
