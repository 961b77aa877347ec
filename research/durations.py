"""How long each command takes: `python -m research.durations` writes profiles/results/durations.json.

Every command runs in a process of its own with one thread. `cpu_s` is what the process and its children computed, so other work
on the machine hardly shows; `wall_s` is what a clock says, which on a machine with other work is more. Commands run in the
order of the list, in a folder that later ones find the files of earlier ones in. `--only` measures some again and keeps the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from spectralquant.files import write_json
from spectralquant.provenance import processor_name, provenance
from spectralquant.results.files import read_results, results_file
from spectralquant.text.read import load_text

ROOT = Path(__file__).resolve().parent.parent
GATE = str(ROOT / "profiles" / "baselines" / "smoke.json")
MEASURED = str(ROOT / "profiles" / "results" / "profile-h100.json")
COMMANDS = {
    "doctor": "doctor",
    "calibrate": "calibrate --tier all --out demo",
    "calibrate one tier": "calibrate --out cold",
    "show": "show demo --html demo.html",
    "pack 2,048 tokens": "pack --profile demo --file manual.txt --max-tokens 2048 --out short.sqkv",
    "pack 5,512 tokens": "pack --profile demo --file manual.txt --max-tokens 5512 --out middle.sqkv",
    "pack 8,192 tokens": "pack --profile demo --file manual.txt --max-tokens 8192 --out long.sqkv --exact int8",
    "inspect": "inspect long.sqkv",
    "unpack": 'unpack middle.sqkv --profile demo --then " In short," --new-tokens 20',
    "generate": "generate --profile demo --file page.txt --new-tokens 40 --tier hot",
    "compare --quick": "compare turboquant h2o --quick --profile demo --json quick.json",
    "profile, no GPU": "profile --context 32768 --batch 1,8 --device cpu",
    "gate --run smoke": f"gate --run smoke --baseline {GATE} --json verdicts.json",
    "report": f"report quick.json verdicts.json {MEASURED} --out report.html",
}
MANUAL, PAGE = 60_000, 7_000  # characters


def durations(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Run commands in `folder`; one row each."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(load_text("builtin:pydoc"))[-MANUAL:]
    (folder / "manual.txt").write_text(text, encoding="utf-8")
    (folder / "page.txt").write_text(text[:PAGE], encoding="utf-8")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    rows = []
    for name in names:
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "sqcli", *shlex.split(COMMANDS[name])]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        if done.returncode not in (0, 1, 3):
            raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr}")
        shown = f"sq {COMMANDS[name]}".replace(f"{ROOT}/", "")
        row = {
            "name": name,
            "command": shown,
            "exit_code": done.returncode,
            "cpu_s": round(cpu, 1),
            "wall_s": round(wall, 1),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(COMMANDS), help="Measure this again; may be repeated.")
    parser.add_argument("--folder", default=Path(tempfile.gettempdir()) / "sq-durations", type=Path)
    parser.add_argument("--out", default="profiles/results/durations.json", type=Path)
    given = parser.parse_args()
    names = given.only or list(COMMANDS)
    rows = {row["name"]: row for row in (read_results(given.out)["rows"] if given.only and given.out.is_file() else [])}
    for name in names:
        rows |= {row["name"]: row for row in durations(given.folder, [name])}
        kept = [rows[name] for name in COMMANDS if name in rows]
        write_json(given.out, results_file("durations", kept, provenance(device=machine(), threads=1)).as_json())


def machine() -> str:
    """The processor's name, and how many cores this process may use."""
    return f"{processor_name()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
