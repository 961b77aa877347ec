"""Five deliberate faults in a copy of the library: the smoke suite must notice every one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODEL = "random:custom:layers=2,heads=4,kv_heads=2,head_dim=32,hidden=128,intermediate=192,vocab=400"
FAULTS = {
    "a codebook off by one": (
        "spectralquant/codec/fixed/codec.py",
        "codes[:, index] = _passed(middles, y[:, index].T.contiguous()).T",
        "codes[:, index] = (_passed(middles, y[:, index].T.contiguous()).T + 1).clamp(max=points.shape[1] - 1)",
        "harness/warm/kl_nats cache/warm/relative_error",
    ),
    "a window never compressed": (
        "spectralquant/cache/compress/compressor.py",
        "if not self.group.coded or total < self.rules.compress_from:",
        "if total >= 0:",
        "cache/hot/works",
    ),
    "RoPE applied twice": (
        "spectralquant/rotary.py",
        "    return r.join(a * r.cos - b * r.sin, b * r.cos + a * r.sin, tail)\n",
        "    a, b = a * r.cos - b * r.sin, b * r.cos + a * r.sin\n"
        "    return r.join(a * r.cos - b * r.sin, b * r.cos + a * r.sin, tail)\n",
        "cache/warm/relative_error",
    ),
    "a ratio from nominal bits": (
        "spectralquant/cache/report/accounting.py",
        "payload_ratio=sum(t.fp16_bytes for t in tiers.values()) / coded if coded else None,",
        "payload_ratio=16 / 2.0,",
        "cache/hot/reported_over_counted",
    ),
    "a compressor that does nothing": (
        "spectralquant/codec/fixed/codec.py",
        "        return out[0], out[1]\n",
        "        return coded.plain\n",
        "calibration/works",
    ),
}


def smoke(folder: Path, *options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder / "kernels")])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "sqcli.app", "gate", "--run", "smoke", "--model", MODEL, "--data", "builtin:pydoc"]
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A copy of the library, its baseline, and a function that copies the copy, with its compiled files."""
    top = tmp_path_factory.mktemp("mutations")
    first = top / "first"
    for part in ("spectralquant", "sqcli", "kernels"):
        shutil.copytree(ROOT / part, first / part, ignore=shutil.ignore_patterns("__pycache__"))
    done = smoke(first, "--save", str(top / "baseline.json"))
    assert done.returncode == 0, done.stderr
    return top, lambda where: shutil.copytree(first, where)


@pytest.mark.slow
def test_the_unchanged_library_passes(library):
    top, _ = library
    done = smoke(top / "first", "--baseline", str(top / "baseline.json"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_a_fault_is_found(library, fault):
    top, copy = library
    file, before, after, named = FAULTS[fault]
    where = copy(top / fault.replace(" ", "-"))
    source = (where / file).read_text()
    assert source.count(before) == 1, f"{file} changed; renew this fault"
    (where / file).write_text(source.replace(before, after))
    if fault.endswith("does nothing"):
        _remember_what_was_coded(where / file)
    done = smoke(where, "--baseline", str(top / "baseline.json"))
    assert done.returncode == 1, done.stdout + done.stderr
    for metric in named.split():
        assert f"regression: smoke/{metric}" in " ".join(done.stdout.split()), done.stdout


def _remember_what_was_coded(file: Path) -> None:
    """Let a coded block carry the block itself, which its decoder then returns."""
    source = file.read_text()
    for before, after in (
        (
            "    keys: Tensor\n    values: Tensor\n",
            "    keys: Tensor\n    values: Tensor\n    plain: tuple = ()\n",
        ),
        (
            "return FixedBlock(packed[0], packed[1])",
            "return FixedBlock(packed[0], packed[1], (block.keys.float(), block.values.float()))",
        ),
    ):
        assert source.count(before) == 1
        source = source.replace(before, after)
    file.write_text(source)
