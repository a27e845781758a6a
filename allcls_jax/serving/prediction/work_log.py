"""What of a job is done: a folder beside the table, by which it goes on after a stop.

Each process appends to a file of its own, a line for each block of pictures, whole and
on the disk before the next one begins; a last line cut short never happened. Any number
of processes, at once or one after another, share the folder and nothing else.
"""

import array
import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from allcls_jax.atomic import write_json
from allcls_jax.errors import InputError, list_problems
from allcls_jax.locking import alone_in, locked
from allcls_jax.serving.prediction.tables import Row

_JOB, _LOCK, _ROWS = "job.json", "lock", "rows.jsonl"
_WAITING = "waiting for another process of this job"
_BLOCK = re.compile(rb'\{"block": (\d+), "rows": \[')
_END = b"]}\n"


class WorkLog:
    """The folder `<out>.part` of one job, as one process sees it.

    Attributes:
      folder: of the job; unfinished files belong into it too.
      own: the part of the folder that is this process' alone.
    """

    def __init__(self, out: Path, process_id: int):
        """Tells where a job's folder is, and looks at nothing."""
        self.folder = folder_of(out)
        self.own = self.folder / f"process_{process_id}"
        self._lock = self.folder / _LOCK

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Makes the folder and keeps this process' part of it for the block.

        A folder in which no job has begun is removed afterwards.

        Raises:
          InputError: if another process of the same number is at work.
          OSError: if the folder cannot be made.
        """
        self.own.mkdir(parents=True, exist_ok=True)
        with alone_in(self.own) as alone:
            if not alone:
                raise InputError(
                    f"{self.own}: another process is at work on this part of the job; "
                    "let it end, or give each process a --process_id of its own"
                )
            try:
                yield
            finally:
                if not (self.folder / _JOB).exists():
                    self._leave()

    def begin(
        self, job: Mapping[str, Any], *, overwrite: bool, first: Callable[[], object]
    ) -> bool:
        """Begins a job, or takes up the same one.

        Args:
          job: everything that the rows depend on, as JSON.
          overwrite: whether another job that was begun here is dropped.
          first: called before a job is begun, not where one is taken up.

        Returns:
          Whether it was begun before.

        Raises:
          InputError: if another job was begun and must not be dropped, or is at work.
        """
        with locked(self._lock, waiting=_WAITING):
            begun = self._begun()
            if begun == job:
                self._drop_cut_line()
                return True
            if begun is not None:
                differing = [
                    f"{name}: {begun.get(name)!r} then, {job.get(name)!r} now"
                    for name in {**begun, **job}
                    if begun.get(name) != job.get(name)
                ]
                if not overwrite:
                    raise list_problems(
                        f"{self.folder}: holds the rows of a job that was interrupted, "
                        "and it differs from this one",
                        differing,
                        remedy="Give the same settings and images to go on, or "
                        "--overwrite to begin anew.",
                    )
                self._drop_rows()
            first()
            write_json(self.folder / _JOB, dict(job))
            return False

    def append(self, line: bytes) -> None:
        """Adds what `line_of` made; it is on the disk when this returns."""
        with (self.own / _ROWS).open("ab", buffering=0) as file:
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())

    def done(self, num_blocks: int) -> "Done":
        """Returns where the rows of each block stand, of whichever process.

        Raises:
          InputError: if a whole line is not one of ours.
        """
        return Done(num_blocks, sorted(self.folder.glob(f"process_*/{_ROWS}")))

    @contextlib.contextmanager
    def last(self) -> Iterator[bool]:
        """Lets one process at a time into the block.

        Yields:
          Whether the job is still there: the last of its processes removes it.
        """
        try:
            with locked(self._lock, waiting=_WAITING):
                yield (self.folder / _JOB).exists()
        except FileNotFoundError:
            if self.folder.exists():
                raise
            yield False

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self) -> None:
        """Removes what this process made; the folder too, if no other has a part."""
        shutil.rmtree(self.own, ignore_errors=True)
        with contextlib.suppress(OSError):
            if [path.name for path in self.folder.iterdir()] == [_LOCK]:
                self._lock.unlink()
            self.folder.rmdir()

    @property
    def begun(self) -> bool:
        """Whether a job was begun here, and not finished."""
        return self._begun() is not None

    def _begun(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads((self.folder / _JOB).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.folder / _JOB}: damaged ({error}); remove {self.folder}, and "
                "the job begins anew"
            ) from error

    def _drop_rows(self) -> None:
        """Drops the job of processes that have ended."""
        for path in self.folder.glob("process_*"):
            if path != self.own:
                with alone_in(path) as alone:
                    if not alone:
                        raise InputError(
                            f"{path}: a process is at work on another job for the same "
                            "table; let it end, or give another --out"
                        )
            (path / _ROWS).unlink(missing_ok=True)
        (self.folder / _JOB).unlink()

    def _drop_cut_line(self) -> None:
        """Cuts off what stands behind the last line break."""
        path = self.own / _ROWS
        if not path.exists():
            return
        with path.open("r+b") as file:
            whole = 0
            for line in file:
                whole += len(line) if line.endswith(b"\n") else 0
            file.truncate(whole)


class Done:
    """Where the rows of the blocks stand that are done; 12 bytes for each block."""

    def __init__(self, num_blocks: int, logs: Sequence[Path]):
        """Reads which blocks the logs hold.

        Raises:
          InputError: if a whole line is not one of ours.
        """
        self._logs = logs
        self._log_of = array.array("i", [-1]) * num_blocks
        self._offset_of = array.array("q", [0]) * num_blocks
        for number, path in enumerate(logs):
            for block, offset in _blocks_in(path):
                if block >= num_blocks:
                    raise _damaged(path)
                self._log_of[block], self._offset_of[block] = number, offset

    def __contains__(self, block: int) -> bool:
        return self._log_of[block] >= 0

    def __len__(self) -> int:
        return len(self._log_of) - self._log_of.count(-1)

    def rows(self) -> Iterator[list[Row]]:
        """Yields the rows of every block in order; all must be done."""
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(path.open("rb")) for path in self._logs]
            for log, offset in zip(self._log_of, self._offset_of, strict=True):
                files[log].seek(offset)
                try:
                    yield json.loads(files[log].readline())["rows"]
                except ValueError as error:
                    raise _damaged(self._logs[log]) from error


def _blocks_in(path: Path) -> Iterator[tuple[int, int]]:
    """Yields number and offset of each whole line's block."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return  # it was being written when the process was stopped
            match = _BLOCK.match(line)
            if match is None or not line.endswith(_END):
                raise _damaged(path)
            yield int(match[1]), offset
            offset += len(line)


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged; remove {path.parent.parent}, and the job begins anew"
    )


def folder_of(out: Path) -> Path:
    """Returns where the unfinished work on a table lies."""
    return out.with_name(f"{out.name}.part")


def line_of(block: int, rows: Sequence[Row]) -> bytes:
    """Returns the line of a log for the rows of a block."""
    content = {"block": block, "rows": list(rows)}
    return json.dumps(content, allow_nan=False).encode() + b"\n"
