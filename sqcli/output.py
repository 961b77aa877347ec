"""Where a command's output goes: tables on stdout, progress on stderr, JSON, CSV, SVG and HTML in files."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from spectralquant.files import require_writable

if TYPE_CHECKING:
    from spectralquant.results.schema import Results

SVG_WIDTH = 96
PIPED_WIDTH = 80


class Output:
    """One command's output; its files, and those in `writes` by option, are tested before any work. With `--json -` stdout carries JSON alone. Text from files is shown as it is: `[x]` is no markup."""

    def __init__(
        self,
        *,
        json_file: str | None = None,
        csv_file: str | None = None,
        svg_file: str | None = None,
        quiet: bool = False,
        writes: Mapping[str, Path | None] | None = None,
    ) -> None:
        if quiet:
            warnings.simplefilter("ignore", UserWarning)  # what they say is in the results
        self.json_file, self.csv_file, self.svg_file, self.quiet = json_file, csv_file, svg_file, quiet
        files = {"--json": None if json_file == "-" else json_file, "--csv": csv_file, "--svg": svg_file}
        for option, path in (files | dict(writes or {})).items():
            if path is not None:
                require_writable(path, option)
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        self.console = Console(stderr=json_file == "-", width=width, soft_wrap=False, highlight=False, markup=False)
        self.errors = Console(stderr=True, highlight=False, markup=False)
        self._shown: list[RenderableType] = []

    def show(self, *parts: RenderableType) -> None:
        """Print tables and plots (nothing with --quiet and --json -)."""
        self._shown.extend(parts)
        if not (self.quiet and self.json_file == "-"):
            for part in parts:
                self.console.print(part)

    def note(self, text: str) -> None:
        """A remark on stderr."""
        if not self.quiet:
            self.errors.print(text)

    def keep(self, result: Results) -> None:
        """Write what is finished so far to the JSON file, if there is one."""
        from spectralquant.files import write_json

        if self.json_file not in (None, "-"):
            write_json(self.json_file, result.as_json())

    def finish(self, result: Results, title: str = "sq") -> None:
        """Write the JSON, CSV and SVG files that were asked for."""
        from spectralquant.files import json_text, write_json, write_text

        if self.json_file == "-":
            sys.stdout.write(json_text(result.as_json()))
        elif self.json_file:
            write_json(self.json_file, result.as_json())
        if self.csv_file:
            write_text(self.csv_file, _csv([row.as_json() for row in result.rows]))
        if self.svg_file:
            recorder = Console(
                record=True,
                width=SVG_WIDTH,
                file=io.StringIO(),
                force_terminal=True,
                color_system="truecolor",
                highlight=False,
                markup=False,
            )
            for part in self._shown:
                recorder.print(part)
            write_text(self.svg_file, recorder.export_svg(title=title))

    def progress(self) -> StageProgress:
        """A bar on stderr; invisible when stderr is no terminal or with --quiet."""
        return StageProgress(self.errors, visible=self.errors.is_terminal and not self.quiet)


class StageProgress:
    """A progress bar that follows named stages: `bar(stage, done, total)`."""

    def __init__(self, console: Console, *, visible: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not visible,
            transient=True,
        )
        self._stage: str | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> StageProgress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage, self._task = stage, self._bar.add_task(stage, total=total, rate="")
        speed = self._bar.tasks[-1].speed
        rate = "" if not speed else (f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")
        self._bar.update(self._task, completed=done, total=total, rate=rate)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items()})
    return text.getvalue()
