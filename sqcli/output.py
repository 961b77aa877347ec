"""Where a command's output goes: tables on stdout, progress on stderr, JSON, CSV, SVG and HTML in files."""

from __future__ import annotations

import csv
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

from spectralquant.errors import InputError
from spectralquant.files import require_writable
from sqcli.collisions import Paths, each_path, require_apart
from sqcli.progress.bar import Plan, StageProgress
from sqcli.refusals.streams import require_own_stream

if TYPE_CHECKING:
    from spectralquant.results.schema import Results

SVG_WIDTH = 96
PIPED_WIDTH = 80


class Output:
    """One command's output; its files, and those in `writes` by option, are tested before any work.

    With `--json -` stdout carries JSON alone. json_option: what the command calls that file. Text from files is shown as it
    is: `[x]` is no markup.
    writes, reads: further outputs, and the inputs that no output may replace, by option.
    """

    def __init__(
        self,
        *,
        json_file: str | None = None,
        csv_file: str | None = None,
        svg_file: str | None = None,
        quiet: bool = False,
        writes: Mapping[str, Paths] | None = None,
        reads: Mapping[str, Paths] | None = None,
        json_option: str = "--json",
    ) -> None:
        if quiet:
            warnings.simplefilter("ignore", UserWarning)  # what they say is in the results
        self.json_file, self.csv_file, self.svg_file, self.quiet = json_file, csv_file, svg_file, quiet
        files: dict[str, Paths] = {
            json_option: None if json_file == "-" else json_file,
            "--csv": csv_file,
            "--svg": svg_file,
        }
        for option in ("--csv", "--svg"):
            if files[option] == "-":
                raise InputError(
                    f"{option} - is no file; only --json writes to stdout. Name a file (./- is one of that name)."
                )
        outputs: dict[str, Paths] = {**files, **(writes or {})}
        require_apart(outputs, reads or {})
        for option, paths in outputs.items():
            for path in each_path(paths):
                require_writable(path, option)
                require_own_stream(path, option, json_option)
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

    def finish(
        self, result: Results, title: str = "sq", view: Callable[[], Iterable[RenderableType]] | None = None
    ) -> None:
        """Write the JSON and CSV files that were asked for, then show `view`, then write the SVG file of all that was shown.

        A view that cannot be drawn takes no results with it.
        """
        from spectralquant.files import json_text, write_json, write_text

        if self.json_file == "-":
            sys.stdout.write(json_text(result.as_json()))
        elif self.json_file:
            write_json(self.json_file, result.as_json())
        if self.csv_file:
            write_text(self.csv_file, _csv([row.as_json() for row in result.rows]))
        if view is not None:
            self.show(*view())
        if self.svg_file:
            write_text(self.svg_file, drawn(self._shown, title))

    def progress(self, plan: Plan = ()) -> StageProgress:
        """A bar on stderr; invisible when stderr is no terminal or with --quiet. plan: see `StageProgress`."""
        return StageProgress(self.errors, visible=self.errors.is_terminal and not self.quiet, plan=plan)


def drawn(parts: Iterable[RenderableType], title: str, **options: Any) -> str:
    """What a terminal would show as an SVG picture. options: of rich's `Console.export_svg`."""
    recorder = Console(
        record=True,
        width=SVG_WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        markup=False,
    )
    for part in parts:
        recorder.print(part)
    return recorder.export_svg(title=title, **options)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items()})
    return text.getvalue()
