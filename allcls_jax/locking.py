"""One process at a time, where the system can do that."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from allcls_jax import terminal

try:
    import fcntl
except ImportError:  # Windows; there nothing keeps two processes apart
    fcntl = None


@contextlib.contextmanager
def locked(file: Path, *, waiting: str) -> Iterator[None]:
    """Lets one process at a time into the block; a killed one lets the next in.

    Args:
      file: made if absent and left there: whoever removed it would let two in.
      waiting: what to tell the user where another process is in the block.

    Raises:
      OSError: if the file cannot be opened for writing.
    """
    with file.open("ab") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                terminal.say(waiting)
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
        yield


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Tells, without waiting, whether no other process is in the block for a folder.

    The lock is on the folder itself: it leaves no file, and ends with the process.

    Raises:
      OSError: if the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
    try:
        alone = True
        if fcntl is not None and handle is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
            except OSError:
                pass  # a file system without locks
        yield alone
    finally:
        if handle is not None:
            os.close(handle)
