"""The log of a run: one record an epoch, in `metrics.jsonl` and for TensorBoard.

A record is on the disk before the checkpoint of its step is. A resumed run drops the
records behind its checkpoint and writes TensorBoard's files anew from the rest, so no
step is doubled or missing. Records hold nothing that depends on time or machine.
"""

import json
import os
import shutil
from pathlib import Path

from tensorboardX import SummaryWriter

from allcls_jax.atomic import write_atomically
from allcls_jax.errors import InputError

Record = dict[str, int | float]  # "epoch", "step" and mean values

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """The records of a run in its workdir; a context manager.

    Attributes:
      history: all records, those of before a resume included.
    """

    def __init__(self, workdir: Path, *, last_step: int, enabled: bool = True):
        """Takes up the log behind a step.

        Args:
          workdir: exists.
          last_step: records of later steps are dropped.
          enabled: False on processes that leave the writing to the first one.
        """
        self._path = workdir / METRICS_FILE
        self._board: SummaryWriter | None = None
        self.history = [
            record for record in read_history(workdir) if record["step"] <= last_step
        ]
        if not enabled:
            return
        write_atomically(self._path, "".join(map(_line, self.history)))
        folder = workdir / TENSORBOARD_FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        self._board = SummaryWriter(str(folder))
        for record in self.history:
            self._show(record)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, record: Record) -> None:
        """Adds the record of an epoch."""
        self.history.append(record)
        if self._board is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
        self._show(record)

    def sync(self) -> None:
        """Returns when all records are on the disk, and before TensorBoard's eyes."""
        if self._board is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())
        self._board.flush()

    def _show(self, record: Record) -> None:
        assert self._board is not None
        for name, value in record.items():
            if name not in ("epoch", "step"):
                use, _, figure = name.partition("_")
                self._board.add_scalar(f"{figure}/{use}", value, int(record["step"]))


def read_history(workdir: Path) -> list[Record]:
    """Returns the records in a workdir's log; a last line cut short is left out.

    Raises:
      InputError: if another line is no record.
    """
    try:
        lines = (workdir / METRICS_FILE).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    # What stands behind the last line break was being written when the run was killed.
    try:
        records = [dict(json.loads(line)) for line in lines[:-1]]
        if not all(isinstance(record.get("step"), int) for record in records):
            raise ValueError("a record without its step")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{workdir / METRICS_FILE}: damaged ({error}); give another --workdir"
        ) from error
    return records


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
