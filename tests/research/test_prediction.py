"""The fit of predicted times, from the stored measurements."""

from __future__ import annotations

import json
from pathlib import Path

from research.prediction import main
from spectralquant.bench import fit
from spectralquant.results.files import read_results


def test_the_command_fits_the_stored_measurements_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["--out", "prediction.json", "--shipped", "fit.json"])
    result = read_results("prediction.json")
    shipped = json.loads(Path("fit.json").read_text())
    assert 0 < result["held_out_error"]["median"] < 0.2 < result["roofline_error"]["worst"]
    assert shipped == json.loads((Path(fit.__file__).parent / "fit.json").read_text())
    assert "error of a predicted time" in capsys.readouterr().out
