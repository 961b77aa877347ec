"""Code that runs in processes which a measuring process starts is code of its results."""

import re
from pathlib import Path

import pytest

from spectralquant.origin.started import ENGINE, STARTED, imported, started_code
from spectralquant.origin.used_code import changed_code, digest, folded

ROOT = Path(__file__).resolve().parents[3]
OWN = {  # these start themselves, another install of this package, or a command whose seconds are the figure
    "research/cache.py",
    "research/durations.py",
    "research/generate/counters.py",
    "research/kernels.py",
    "research/results/commands.py",
    "spectralquant/bench/generate/first_calls.py",
    "spectralquant/gate/interleaved.py",
}
NO_CODE_OF_OURS = {
    "research/headline/texts.py",
    "research/results/offline.py",
    "spectralquant/diagnostics.py",
    "spectralquant/models/builtin/fetch.py",
}


def test_every_file_that_starts_python_says_what_runs_there():
    files = [file for top in ("spectralquant", "research") for file in (ROOT / top).rglob("*.py")]
    start = {f.relative_to(ROOT).as_posix() for f in files if re.search(r"sys\.executable|\[python,", f.read_text())}
    known = STARTED.keys() | OWN | NO_CODE_OF_OURS
    assert start <= known
    assert all((ROOT / path).is_file() for path in known)


@pytest.mark.parametrize("path", STARTED)
def test_what_the_table_names_is_there(path):
    assert (ROOT / path).is_file()
    assert all((ROOT / place).exists() for place in STARTED[path])


def test_an_engine_uses_the_tier_the_codec_and_the_kernels():
    code = started_code(["spectralquant/integrations/serve_check/process.py"], ROOT)
    assert {f"{ENGINE}tier.py", f"{ENGINE}hot/gpu_backend.py", f"{ENGINE}tiered/rows.py"} <= code
    assert {"spectralquant/integrations/store/folder.py", "kernels/sqkernels/entropy/triton.py"} <= code
    assert not {path for path in code if path.startswith(("spectralquant/calibration/capture", "tests/"))}
    assert started_code(["spectralquant/geometry.py"], ROOT) == set()


def test_imports_inside_functions_and_the_packages_around_count(tmp_path):
    (tmp_path / "research" / "a").mkdir(parents=True)
    for name in ("__init__", "a/__init__", "a/b"):
        (tmp_path / "research" / f"{name}.py").write_text("")
    (tmp_path / "research" / "one.py").write_text("import torch\ndef f():\n    from research.a import b, nothing\n")
    found = set(imported(tmp_path, "research/one.py"))
    assert found == {"research/__init__.py", "research/a/__init__.py", "research/a/b.py"}


def test_a_c_source_is_code_and_its_change_is_seen(tmp_path):
    folder = tmp_path / "spectralquant" / "codec"
    folder.mkdir(parents=True)
    (folder / "coder.c").write_text("int x = 1;\n")
    noted = folded({"spectralquant/codec/coder.c": digest(folder / "coder.c")})
    assert changed_code(noted, tmp_path) == []
    (folder / "coder.c").write_text("int x = 22;\n")
    assert changed_code(noted, tmp_path) == ["spectralquant/codec/coder.c"]
