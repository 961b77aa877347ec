"""Decoding by engines that are alone on the GPU, one after the other, and then side by side in the opposite order."""

from __future__ import annotations

from typing import ClassVar

import pytest

from research.serving import decode_alone as module
from research.serving.decode_alone import NAMES, PASSES, ROUNDS, decode_alone, forth_and_back, main
from spectralquant.integrations.serve_check.check import UNFINISHED
from spectralquant.results.files import read_results

FACTS = {"vllm": "0.26.0", "device": "H", "start_s": 1.0, "pages": 9}


class Engine:
    """Answers as an engine's process does, and notes who is on the GPU with it."""

    on_gpu: ClassVar[list[str]] = []
    seen: ClassVar[list[tuple[str, tuple[str, ...], str]]] = []

    def __init__(self, name, order, folder) -> None:
        self.name, self.folder = name, folder
        assert order.transfer is None or str(folder) in str(order.transfer)

    def tell(self, line):
        if line == "start":
            self.on_gpu.append(self.name)
            return {"facts": FACTS}
        self.seen.append((self.name, tuple(self.on_gpu), line))
        rate = 97.0 if self.name == "spectral" else 100.0
        one = {"tokens_per_s": rate, "step_s": 8 / rate, "connector_s": 1e-4}
        return {"rounds": {"storing": one, "stored": one}}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.name in self.on_gpu:
            self.on_gpu.remove(self.name)


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.setattr(module, "Turns", Engine)
    monkeypatch.setattr(module, "require_vllm", lambda gpus, what: None)
    monkeypatch.setattr(module, "in_another_process", lambda *words: None)
    Engine.on_gpu, Engine.seen = [], []
    return Engine


def test_every_pass_has_the_gpu_to_itself_and_the_last_starts_from_the_other_end(engines, tmp_path):
    kept = []
    result = decode_alone(tmp_path, tmp_path / "out.json", kept.append)
    alone = [(name, line) for name, beside, line in engines.seen if beside == (name,)]
    rounds = [str(n) for n in range(ROUNDS + 1)]
    assert alone == [(name, line) for name in forth_and_back(NAMES, PASSES) for line in rounds]
    assert {beside for _, beside, _ in engines.seen if len(beside) > 1} == {NAMES[::-1]} and not engines.on_gpu
    assert [row.way for row in result.rows] == [f"{kind}/{name}" for kind in ("alone", "opposite") for name in NAMES]
    assert result.summary["alone_decode_over_recompute"] == pytest.approx(0.97)
    assert result.summary["opposite_decode_storing_over_vllm_tiers"] == pytest.approx(0.97)
    assert len(result.rows[0].decode_samples_tokens_per_s["stored"]) == PASSES * ROUNDS
    assert read_results(tmp_path / "out.json").as_json() == result.as_json()


def test_what_a_run_that_is_cut_off_has_measured_is_there(engines, tmp_path, monkeypatch):
    class Ends(Engine):
        def tell(self, line):
            if line == "start" and self.folder.name == str(len(NAMES) * PASSES):
                raise KeyboardInterrupt
            return super().tell(line)

    monkeypatch.setattr(module, "Turns", Ends)
    with pytest.raises(KeyboardInterrupt):
        decode_alone(tmp_path, tmp_path / "out.json", lambda line: None)
    kept = read_results(tmp_path / "out.json")
    assert kept.settings[UNFINISHED] and [row.way for row in kept.rows] == [f"alone/{name}" for name in NAMES]


def test_wrong_words_and_a_machine_without_vllm_are_refused(capsys, tmp_path):
    assert main() == main("a", "b") == main("--help") == 2
    assert "decode_alone OUT" in capsys.readouterr().err
    assert main(str(tmp_path)) == main(str(tmp_path / "none" / "out.json")) == 2
    assert capsys.readouterr().err.count("cannot be written") == 2
    assert main(str(tmp_path / "out.json")) == 2 and "vLLM" in capsys.readouterr().err
