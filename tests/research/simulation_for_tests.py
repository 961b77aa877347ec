"""`sq` whose simulation of the gate takes few runs."""

from __future__ import annotations

import functools
import runpy

from spectralquant.gate import simulation

if __name__ == "__main__":
    simulation.simulate = functools.partial(simulation.simulate, runs=50)
    runpy.run_module("sqcli", run_name="__main__", alter_sys=True)
