"""What the commands print: results to stdout, everything else to stderr."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

__all__ = ["Bars", "fail", "note", "out", "print_table", "steps"]

_PIPE_WIDTH = 140
"""Columns when the output is no terminal, where rich would assume 80."""


def _console(stream: Any) -> Console:
    # Made anew each time: tests and notebooks exchange the streams.
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


def out(text: str = "") -> None:
    """A line of the result."""
    _console(sys.stdout).print(text, markup=False)


def note(text: str) -> None:
    """A line beside the result."""
    _console(sys.stderr).print(text, markup=False)


def fail(text: str) -> None:
    """An error."""
    _console(sys.stderr).print(f"[bold red]error:[/] {escape(text)}")


def steps(title: str, lines: Mapping[str, str]) -> None:
    """What to do next: `{"draw molecules": "scildm sample ..."}`."""
    console = _console(sys.stderr)
    console.print(f"[bold]{escape(title)}[/]")
    width = max((len(name) for name in lines), default=0)
    for name, command in lines.items():
        console.print(f"  {escape(name.ljust(width))}  [cyan]{escape(command)}[/]")


def print_table(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    title: str | None = None,
    wrap: Sequence[str] = (),
) -> None:
    """A table on stdout; numbers to four digits, right-aligned."""
    from sciLDM.evaluate.html import number  # loads torch; help and mistakes must answer at once

    rows = list(rows)
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for name in columns:
        numeric = any(isinstance(row.get(name), int | float) for row in rows)
        justify = "right" if numeric else "left"
        table.add_column(
            name, justify=justify, no_wrap=name not in wrap, overflow="fold" if name in wrap else "ellipsis"
        )
    for row in rows:
        table.add_row(*[escape(number(row.get(name))) for name in columns])
    _console(sys.stdout).print(table)


@final
class Bars:
    """Progress bars for long loops, one per task, on stderr. Call it as `bars(what, done, total)`.

    When all tasks are done the display is let go, so that others (a training's own bar) can draw.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._progress is None and done >= total:
            return  # nothing to watch
        progress = self._progress or self._open()
        if what not in self._tasks:
            self._tasks[what] = progress.add_task(what, total=total)
        progress.update(self._tasks[what], completed=done, total=total)
        if all(task.finished for task in progress.tasks):
            self.close()

    def _open(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = progress = Progress(*columns, TimeRemainingColumn(), console=_console(sys.stderr))
        progress.start()
        return progress

    def say(self, text: str) -> None:
        """A line on stderr, above any bar."""
        self.close()
        note(text)

    def close(self) -> None:
        """Stop drawing."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def __enter__(self) -> "Bars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
