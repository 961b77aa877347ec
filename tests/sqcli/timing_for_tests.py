"""The gate's worker as `sq gate --against` starts it, with a smaller model: what it times is the same, and quicker."""

from __future__ import annotations

import runpy

from spectralquant.gate.interleaved import WORKER
from spectralquant.models import load
from spectralquant.models.shapes import parse_shape

SMALLER = "random:custom:layers=2,heads=4,kv_heads=2,head_dim=32,hidden=64,intermediate=128,vocab=400"
load_model = load.load_model


def load_smaller(name: str, **options):
    """The smaller model in place of a random one whose shape can be made."""
    parse_shape(name.removeprefix("random:"))
    return load_model(SMALLER, **options)


if __name__ == "__main__":
    load.load_model = load_smaller
    runpy.run_module(WORKER, run_name="__main__")
