"""Files that are never half there: written beside their place and renamed."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file; text becomes UTF-8.

    Raises:
      OSError: naming the file's place, if it cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    # The process id keeps two writers of one file apart.
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, reason, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any] | Sequence[Any]) -> None:
    """Writes indented JSON atomically; NaN and infinity are refused."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
