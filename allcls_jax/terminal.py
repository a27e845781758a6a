"""What a user sees while a command runs: tables, messages and progress.

On a terminal progress is a live bar; elsewhere (a log file, CI) it is a plain line now
and then. All output goes to standard output; in a run of several processes only the
first one speaks.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich import box, console, markup, progress, table

_console = console.Console(highlight=False, soft_wrap=True)
if not _console.is_terminal:
    _console.width = 110  # a log file is as wide as the widest table

# A plain line at most this often, in seconds.
_PLAIN_INTERVAL = 10.0

Advance = Callable[[int], None]


def silence() -> None:
    """Stops all output of this process."""
    _console.quiet = True


def say(text: str) -> None:
    """Writes one line of plain text."""
    _console.print(markup.escape(text))


def warn(text: str) -> None:
    """Writes a line that must not be overlooked."""
    _console.print(f"[bold yellow]WARNING[/] {markup.escape(text)}")


def show_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """Writes a table; every column but the first is aligned to the right.

    Args:
      title: stands above the table.
      header: a heading for each column.
      rows: each as long as `header`; a row of empty strings draws a line.
    """
    grid = table.Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold"
    )
    for column, heading in enumerate(header):
        grid.add_column(heading, justify="right" if column else "left", overflow="fold")
    for row in rows:
        if any(str(cell) for cell in row):
            grid.add_row(*(markup.escape(str(cell)) for cell in row))
        else:
            grid.add_section()
    _console.print(grid)


@contextlib.contextmanager
def track(what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Shows progress while the block runs.

    Args:
      what: the activity, such as `packing`.
      total: number of units in all.
      unit: the unit's plural, such as `images`; the rate is shown in it.
      done: units finished before this block.

    Yields:
      A function that is called with the number of units just finished.
    """
    if _console.is_terminal and not _console.quiet:
        with progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn(f"{unit} • {{task.fields[rate]}} •"),
            progress.TimeRemainingColumn(),
            console=_console,
            transient=True,
        ) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="")
            meter = _Meter(total - done)

            def advance(count: int) -> None:
                meter.add(count)
                bar.update(task, advance=count, rate=f"{meter.rate:,.1f}/s")

            yield advance
        return

    meter = _Meter(total - done)
    last = time.monotonic()

    def advance_plainly(count: int) -> None:
        nonlocal last
        meter.add(count)
        now = time.monotonic()
        if now - last >= _PLAIN_INTERVAL:
            last = now
            say(
                f"{what}: {done + meter.done:,}/{total:,} {unit}, "
                f"{meter.rate:,.1f}/s, {meter.eta()} left"
            )

    yield advance_plainly


def duration(seconds: float) -> str:
    """Returns seconds as `8 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Meter:
    """Counts units and their rate since it was made."""

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self._start = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def eta(self) -> str:
        """Estimated time until `total`."""
        return duration((self.total - self.done) / max(self.rate, 1e-9))
