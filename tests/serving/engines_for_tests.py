"""Engines in processes of their own, on the built-in model, with a store that tests damage in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spectralquant.files import read_json, write_json
from spectralquant.integrations.chunks import LOSSLESS
from spectralquant.integrations.serve_check.child import numbers_file
from spectralquant.integrations.serve_check.orders import Order, Prompts, Step
from spectralquant.integrations.serve_check.process import run
from spectralquant.integrations.serve_check.ways import ours

GB = 10**9
ENGINE = {"max_model_len": 1536, "enforce_eager": True, "dtype": "bfloat16"}


class Serving:
    """A folder with one store, and engines that use it one after the other or together."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model, self.store = folder, model, folder / "store"

    def order(self, steps: list[Step], codec: str | None = LOSSLESS, budget: int = GB) -> Order:
        transfer = None if codec is None else ours(self.store, budget, codec, "cpu")
        return Order(str(self.model), ENGINE, transfer, steps)

    def run(self, name: str, steps: list[Step], **options: Any) -> dict[str, Any]:
        """The report of an engine that did `steps`; codec=None: without the tier."""
        return run(self.order(steps, **options), self.folder, name, timeout=400)

    def begin(self, name: str, steps: list[Step], **options: Any) -> subprocess.Popen:
        """An engine that is not waited for; its report is `NAME.report.json`."""
        order = self.folder / f"{name}.order.json"
        write_json(order, asdict(self.order(steps, **options)))
        command = [sys.executable, "-m", "spectralquant.integrations.serve_check.child", order, self.report_file(name)]
        with open(self.folder / f"{name}.log", "wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ)

    def report_file(self, name: str) -> Path:
        return self.folder / f"{name}.report.json"

    def report(self, name: str) -> dict[str, Any]:
        return read_json(self.report_file(name), "The report")

    def numbers(self, name: str, step: str = "texts") -> np.ndarray:
        return np.load(numbers_file(self.report_file(name), step))

    def files(self) -> list[Path]:
        return sorted(self.store.rglob("*.sqchunk"))

    def kill_while_saving(self, name: str, steps: list[Step]) -> None:
        """Start an engine and end it by SIGKILL when its first packet lies in the store."""
        process = self.begin(name, steps)
        end = time.monotonic() + 200
        while not self.files() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert self.files(), (self.folder / f"{name}.log").read_text()[-2000:]


def shared(count: int = 3, tokens: int = 500) -> Prompts:
    return Prompts("shared", count, tokens)


def fills(prompts: Prompts) -> list[Step]:
    return [Step("fill", "fill", prompts), Step("settle", "settle")]


def texts(prompts: Prompts, new: int = 6) -> list[Step]:
    return [Step("texts", "texts", prompts, new)]
