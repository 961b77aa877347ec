"""`sq study cold-speed`: how fast packets come and go, against the prefill that they replace and against other coders.

`python -m research.cold_speed.study SAMPLE.npz OUT.json` runs it on a GPU machine that has neither model nor profile; SAMPLE is
what `sq study cold-speed --keep-sample SAMPLE.npz` wrote elsewhere. With `--profile P --data D` it measures quality too. A run goes on
where OUT stands: parts that are there are kept, unless `--part` names them. `--join FILE` puts parts that were measured apart into OUT.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from research.cold_speed.costs import QualityOf
from research.cold_speed.parts import PARTS, Bearings
from research.cold_speed.sample import SpeedSample
from research.cold_speed.summary import summary_of
from spectralquant.errors import InputError, did_you_mean
from spectralquant.files import write_json
from spectralquant.models.shapes import SHAPES
from spectralquant.provenance import device_facts, provenance
from spectralquant.results.files import read_results, results_file
from spectralquant.results.schema import Results

MADE = (
    "Symbols, their tables, importance classes and the share of kept components are those of the sample's profile; components repeat, "
    "each with its tables and with symbols of other tokens of the same class, up to the shape's width. Bases are those "
    "that sq calibrate chooses at the shape (at 8B two levels over all layers, kept as two factors), of random orthonormal rows. Token "
    "ids are a real text's. Layers of different windows are coded apart, as packets hold them. For prefill and first tokens the "
    "model has random weights, and means and gains are fitted so that its coefficients have the sample's variances."
)
SAME = ("git_commit", "git_dirty", "device", "sample", "sample_shape", "seed", "versions")
Save = Callable[[Results], None]


def cold_speed_study(
    at: Bearings,
    parts: Sequence[str] = (),
    earlier: Results | None = None,
    save: Save = lambda result: None,
) -> Results:
    """All parts that `earlier` lacks, or those named. `save` gets the results so far, so that a run cut short leaves them.

    Raises:
        InputError: no such part, a part that lacks what it needs, or `earlier` results of another commit, device
            or sample.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(
                f"There is no part {part!r}; there are {', '.join(PARTS)}.{did_you_mean(part, tuple(PARTS))}"
            )
    if "quality" in parts and at.quality is None:
        raise InputError("The part quality needs a profile and a text (--profile P --data D).")
    named = {"sample": at.sample.symbols.source, "sample_shape": at.own.name, "made": MADE, "seed": 0}
    facts = provenance(**device_facts(at.device), **named)
    done = {} if earlier is None else _kept(earlier, facts, parts)
    wanted = [
        p for p in PARTS if p in parts or (not parts and p not in done and (p != "quality" or at.quality is not None))
    ]

    for number, part in enumerate(wanted):
        at.progress(part, number, len(wanted))
        own = done[part] = {"rows": [], "checks": {}, "created": facts["created"], "whole": False}
        for rows, checks in PARTS[part](at):
            own["rows"] += [row | {"part": part} for row in rows]
            own["checks"] |= checks
            save(_result(done, facts))
            gc.collect()
            torch.cuda.empty_cache()
        own["whole"] = True
    return _result(done, facts)


def joined(results: Sequence[Results]) -> Results:
    """Parts that were measured apart, by one commit on one kind of device, as one file.

    Raises:
        InputError: they are of several commits, devices or samples, or one part is in two of them.
    """
    facts = results[0].provenance
    done: dict[str, dict[str, Any]] = {}
    for one in results:
        more = _kept(one, facts, ())
        if twice := set(more) & set(done):
            raise InputError(f"The part {min(twice)} is in two of the files. Name one of them.")
        done |= more
    return _result({name: done[name] for name in PARTS if name in done}, facts)


def _result(done: dict[str, dict[str, Any]], facts: dict[str, Any]) -> Results:
    rows = [row for part in done.values() for row in part["rows"]]
    made = {name: {"created": part["created"], "whole": part["whole"]} for name, part in done.items()}
    checks = {name: part["checks"] for name, part in done.items()}
    return results_file("cold-speed", rows, facts, checks=checks, summary=summary_of(rows), parts=made)


def require_gpu(device: torch.device, parts: Sequence[str] = ()) -> None:
    """Refuse to time kernels on a CPU.

    Raises:
        InputError: not a CUDA GPU, and other parts than `cpu` are asked for.
    """
    if tuple(parts) != ("cpu",) and (device.type != "cuda" or not torch.cuda.is_available()):
        raise InputError(
            "cold-speed times kernels: it needs a CUDA GPU (--device cuda). The part `cpu` alone needs none."
        )


def _kept(earlier: Results, facts: dict[str, Any], parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Whole parts of `earlier` results that are not to be measured anew."""
    if earlier.name != "cold-speed":
        raise InputError(f"The results file holds a {earlier.name} study. Name another file.")
    for name in SAME:
        if earlier.provenance.get(name) != facts.get(name):
            raise InputError(
                f"The results file has parts of another {name} ({earlier.provenance.get(name)}, now {facts.get(name)}), and figures "
                "of one file are of one run. Name another file, or delete it."
            )
    every = earlier.as_json()
    return {
        name: {
            "rows": [row for row in every["rows"] if row["part"] == name],
            "checks": every["checks"].get(name, {}),
            **made,
        }
        for name, made in every["parts"].items()
        if made["whole"] and name not in parts
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sample")
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", default="smollm2-135m", choices=sorted(SHAPES))
    parser.add_argument("--random", type=int, default=10_000)
    parser.add_argument("--part", action="append", default=[], choices=tuple(PARTS))
    parser.add_argument("--profile")
    parser.add_argument("--data", default="builtin:pydoc")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--join", type=Path, help="Only put the parts of this file into OUT, which lacks them.")
    arguments = parser.parse_args()
    if arguments.join is not None:
        write_json(arguments.out, joined([read_results(arguments.out), read_results(arguments.join)]).as_json())
        return
    require_gpu(torch.device("cuda"))
    quality = None
    if arguments.profile is not None:
        quality = QualityOf.read(arguments.profile, arguments.data, arguments.windows)
    at = Bearings(
        SpeedSample.load(arguments.sample),
        SHAPES[arguments.shape],
        torch.device("cuda"),
        arguments.random,
        quality,
        lambda stage, done, total: None if stage.startswith("random") else print(stage, flush=True),
    )
    earlier = read_results(arguments.out) if arguments.out.is_file() else None
    save = lambda result: write_json(arguments.out, result.as_json())  # noqa: E731
    result = cold_speed_study(at, arguments.part, earlier, save)
    save(result)
    print(result["summary"], result["checks"])


if __name__ == "__main__":
    main()
