"""Sorting more lines than memory should hold: runs on disk, merged as they are read.

The order is that of `sorted`, equal lines in the order in which they came; what is held
in memory does not depend on how many lines there are.
"""

import contextlib
import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Lines in memory at once, and runs that are merged, and open, at once.
_LINES, _RUNS = 5_000, 16


def sorted_lines(
    lines: Iterable[str], folder: Path, *, key: Callable[[str], Any]
) -> Iterator[str]:
    """Yields the lines in order.

    Args:
      lines: each ends with its only line break.
      folder: in which runs are kept meanwhile, in a folder of their own.
      key: of a line, for comparison.

    Raises:
      OSError: if they cannot be written.
    """
    remaining = iter(lines)
    with tempfile.TemporaryDirectory(dir=folder, prefix="sort.") as scratch:
        paths = (Path(scratch) / str(number) for number in itertools.count())
        # Runs of about the same length are merged, so that a line is copied a few times
        # only; those of a level came before those of the levels below it.
        levels: list[list[Path]] = [[]]
        while chunk := list(itertools.islice(remaining, _LINES)):
            chunk.sort(key=key)
            levels[0].append(_write(chunk, next(paths)))
            del chunk  # before the next one is made
            for level, runs in enumerate(levels):
                if len(runs) == _RUNS:
                    if level + 1 == len(levels):
                        levels.append([])
                    levels[level + 1].append(_merge(runs, next(paths), key))
                    levels[level] = []
        with _merged(itertools.chain(*reversed(levels)), key) as merged:
            yield from merged


def _merge(runs: Iterable[Path], path: Path, key: Callable[[str], Any]) -> Path:
    """Makes one run of several."""
    with _merged(runs, key) as merged:
        _write(merged, path)
    for run in runs:
        run.unlink()
    return path


def _write(lines: Iterable[str], path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    return path


@contextlib.contextmanager
def _merged(runs: Iterable[Path], key: Callable[[str], Any]) -> Iterator[Iterator[str]]:
    with contextlib.ExitStack() as opened:
        files = [
            opened.enter_context(run.open(encoding="utf-8", newline="\n"))
            for run in runs
        ]
        yield heapq.merge(*files, key=key)
