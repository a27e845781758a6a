"""Folders that appear whole or not at all.

What is under way lies beside its place in a folder of a name of its own, which a killed
process leaves and the next one that writes the same folder removes.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from allcls_jax.locking import locked


@contextlib.contextmanager
def exclusively(out: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager]]:
    """Lets one process at a time write a folder.

    Args:
      out: the folder; what lies there stays until the new one is whole. Its parent is
        made.

    Yields:
      A function for a `with` statement that gives an empty folder to write into. At the
      end of that block it takes the place of `out`; after an exception it is removed.

    Raises:
      OSError: whatever keeps the folder from being written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(
        out.with_name(f".{out.name}.lock"),
        waiting=f"waiting for another process that writes {out}",
    ):
        yield lambda: _replacing(out)


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    _sweep(out)
    beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.part-", dir=out.parent))
    try:
        # Within: mkdtemp's own folder is its owner's alone.
        new, old = beside / "new", beside / "old"
        new.mkdir()
        yield new
        if os.path.lexists(out):
            out.replace(old)
        try:
            new.replace(out)
        except OSError:
            if os.path.lexists(old):
                old.replace(out)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Removes what killed processes left; the lock says that no other is at work."""
    # The whole name: `.cells.part-…` is not of a folder `cells.part-…`'s.
    left = re.compile(rf"\.{re.escape(out.name)}\.part-[^.]+")
    for path in out.parent.iterdir():
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
