"""Many pictures to one table: in blocks, by any number of processes, resumable.

The pictures of a block, and so the batches in which they are computed, depend on the
list alone. So the table is the same, byte for byte, whether the job ran at one go, was
stopped and taken up, or was divided among processes on devices of the same kind.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from allcls_jax import DISCLAIMER, __version__, terminal
from allcls_jax.atomic import write_json
from allcls_jax.errors import InputError, explain_failure
from allcls_jax.experiments.provenance import provenance
from allcls_jax.serving.arguments import COVERAGE
from allcls_jax.serving.model import Model
from allcls_jax.serving.prediction import on_ray, tables, work_log
from allcls_jax.serving.prediction.inputs import PictureList, write_list
from allcls_jax.serving.prediction.rows import Rows
from allcls_jax.serving.prediction.tables import Row
from allcls_jax.serving.prediction.work_log import WorkLog

# Pictures whose rows are put on the disk together; so many are lost at most by a stop.
BLOCK_SIZE = 256

_JOB_FORMAT = 1
_EXAMPLES = 5  # of pictures that could not be read, shown at the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Who does a job.

    Attributes:
      number: of processes on a shared folder, or of Ray's actors.
      index: of this one, from 0.
      ray: None: without Ray; `local`: Ray on this machine; else a cluster's address.
    """

    number: int = 1
    index: int = 0
    ray: str | None = None

    def __post_init__(self) -> None:
        """Raises `InputError` for what cannot be."""
        if self.number < 1:
            raise InputError(f"--num_processes={self.number}: must be at least 1")
        if not 0 <= self.index < self.number:
            raise InputError(
                f"--process_id={self.index}: must be from 0 to {self.number - 1}, one "
                f"less than --num_processes={self.number}"
            )
        if self.ray is not None and self.index:
            raise InputError(
                f"--process_id={self.index}: Ray numbers its own; leave it out with "
                "--ray"
            )


def predict(
    model: Model,
    paths: Sequence[str],
    out: Path,
    *,
    threshold: str | None = None,
    coverage: float = COVERAGE,
    overwrite: bool = False,
    processes: Processes | None = None,
    block_size: int = BLOCK_SIZE,
) -> Counter[str] | None:
    """Writes what a model says of pictures into a table, and beside it a record.

    The table has a row for each picture in the order of the list, also for those that
    cannot be read. Beside it lie `<out>.json` and, where patients are known,
    `<out>.patients.csv`. Interrupted, it leaves `<out>.part`, and goes on from
    there.

    Args:
      model: an opened one.
      paths: images, folders, zips, patterns, csv files.
      out: the table; `.csv`, `.jsonl` or `.parquet`.
      threshold: a name or number; None: the model's own.
      coverage: the share of images that the model should decide, in (0, 1].
      overwrite: whether a table, or another job that was interrupted, may be replaced.
      processes: None: this one alone.
      block_size: pictures that are written together.

    Returns:
      How many there were of each kind, by name; None if other processes have work left.

    Raises:
      InputError: if an argument cannot be used, there are no pictures, none could be
        read, the table exists, an interrupted job differs, or the disk is full.
    """
    processes = processes or Processes()
    check_out(out, overwrite=overwrite or processes.number > 1)
    value = model.threshold(threshold)
    model.margin(value, coverage)  # before anything is begun
    log = WorkLog(out, processes.index)
    try:
        with contextlib.ExitStack() as entered:
            if processes.ray:
                ray = on_ray.running(processes.ray, processes.number)
                entered.enter_context(ray)
            entered.enter_context(log.claimed())
            job = _Job(model, out, log, value, coverage)
            return job.work(paths, overwrite, processes, block_size)
    except OSError as error:
        raise _explained(error, out) from error


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raises `InputError` if a table cannot be written to a place.

    Args:
      out: the table.
      overwrite: whether it may be there.
    """
    tables.format_of(out)
    if not out.parent.is_dir():
        raise InputError(f"--out={out}: its folder does not exist; make it first")
    if out.is_dir():
        raise InputError(f"--out={out}: is a folder; give the name of a file")
    if out.exists() and not overwrite:
        raise _exists(out)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One process' share of a job."""

    model: Model
    out: Path
    log: WorkLog
    threshold: float
    coverage: float

    def work(
        self,
        paths: Sequence[str],
        overwrite: bool,
        processes: Processes,
        block_size: int,
    ) -> Counter[str] | None:
        pictures = write_list(
            paths, self.log.own / "images.jsonl", block_size=block_size
        )
        identity = self._identity(pictures, processes)
        late = processes.number > 1 and not self.log.begun
        if self.out.exists() and (late or not overwrite):
            if _record_of(self.out).get("job") == identity:
                terminal.say(f"{self.out}: complete, by this job's other processes")
                return None
            if not overwrite:
                raise _exists(self.out)
        shared = self.log.folder / pictures.file.name

        def begin() -> None:
            for path in (_record_file(self.out), _patients_file(self.out)):
                if path.exists() and not overwrite:
                    raise _exists(path)
            pictures.file.replace(shared)

        if self.log.begin(identity, overwrite=overwrite, first=begin):
            pictures.file.unlink()
        pictures = dataclasses.replace(pictures, file=shared)
        if pictures.repeated:
            terminal.warn(
                f"{pictures.repeated:,} of {pictures.count:,} images are listed more "
                "than once, and count as often"
            )
        self._compute(pictures, processes)
        with self.log.last() as there:
            if not there:
                terminal.say(f"{self.out}: written by another process of this job")
                return None
            done = self.log.done(pictures.num_blocks)
            if left := pictures.num_blocks - len(done):
                terminal.say(
                    f"this process is done; {left:,} of {pictures.num_blocks:,} blocks "
                    "are left to others, and the last one writes the table"
                )
                return None
            counts = self._merge(done.rows())
            self._record(paths, pictures, identity, counts)
            (self.log.folder / f"table{self.out.suffix}").replace(self.out)
            self.log.remove()
        self._tell(counts)
        if not counts["read"]:
            raise InputError(
                f"none of {counts['images']:,} images could be read; {self.out} gives "
                "the reason for each in the column error"
            )
        return counts

    def _identity(self, pictures: PictureList, processes: Processes) -> dict[str, Any]:
        """Everything that the rows depend on."""
        return {
            "format": _JOB_FORMAT,
            "version": __version__,
            "model": self.model.sha256,
            "threshold": self.threshold,
            "coverage": self.coverage,
            # Elsewhere convolutions are computed in another type.
            "device": "ray" if processes.ray else jax.default_backend(),
            "batch size": self.model.batch_size,
            "block size": pictures.block_size,
            "number of images": pictures.count,
            "names, sizes and times of the images": pictures.sha256,
        }

    def _compute(self, pictures: PictureList, processes: Processes) -> None:
        """Puts into the log what this process has to do and has not done."""
        dealt = 1 if processes.ray else processes.number
        own = range(processes.index, pictures.num_blocks, dealt)
        done = self.log.done(pictures.num_blocks)
        waiting = [block for block in own if block not in done]
        sizes = Counter(map(pictures.size, own))
        total = sum(size * number for size, number in sizes.items())
        left = sum(map(pictures.size, waiting))
        if left < total:
            terminal.say(f"going on: {total - left:,} of {total:,} images are done")
        with terminal.track(
            "predicting", total, "images", done=total - left
        ) as advance:
            for block, line in self._lines(pictures, waiting, processes):
                self.log.append(line)
                advance(pictures.size(block))

    def _lines(
        self, pictures: PictureList, blocks: Sequence[int], processes: Processes
    ) -> Iterator[tuple[int, bytes]]:
        """Yields the lines of the log for blocks, in any order."""
        if processes.ray:
            yield from on_ray.lines(
                self.model,
                pictures,
                blocks,
                threshold=self.threshold,
                coverage=self.coverage,
                num_actors=processes.number,
            )
            return
        if blocks:
            self.model.self_check()
        rows = Rows(self.model, self.threshold, self.coverage)
        numbered = ((block, pictures.block(block)) for block in blocks)
        for block, found in rows.of(numbered, ahead=pictures.block_size):
            yield block, work_log.line_of(block, found)

    def _merge(self, blocks: Iterable[list[Row]]) -> Counter[str]:
        """Writes the tables, the main one into the folder of the job; counts."""
        folder = self.log.folder
        counts: Counter[str] = Counter()
        examples: list[str] = []
        patients = folder / "patients.jsonl"
        about = {
            "disclaimer": DISCLAIMER,
            "notes": "; ".join(self.model.notes),
            "model": self.model.sha256,
        }
        with (
            patients.open("w", encoding="utf-8") as lines,
            tables.open_table(
                folder / f"table{self.out.suffix}", beside=folder, about=about
            ) as write,
        ):
            for rows in blocks:
                write(rows)
                for row in rows:
                    counts.update(_kinds(row))
                    lines.write(tables.patient_line(row) or "")
                    if row["error"] and len(examples) < _EXAMPLES:
                        examples.append(f"{row['image']}: {row['error']}")
        file = _patients_file(self.out)
        if counts["with a patient"]:
            with patients.open(encoding="utf-8") as lines:
                number = tables.write_patients(lines, file, beside=folder)
            counts["patients"] = number
        else:
            file.unlink(missing_ok=True)  # of a table that is replaced
        for example in examples:
            terminal.warn(f"not read: {example}")
        return counts

    def _record(
        self,
        paths: Sequence[str],
        pictures: PictureList,
        identity: dict[str, Any],
        counts: Counter[str],
    ) -> None:
        write_json(
            _record_file(self.out),
            {
                "kind": "prediction",
                "table": self.out.name,
                "model": {"path": str(self.model.path), "sha256": self.model.sha256},
                "threshold": self.threshold,
                "coverage": self.coverage,
                "paths": list(paths),
                "counts": dict(counts) | {"listed again": pictures.repeated},
                "notes": list(self.model.notes),
                "disclaimer": DISCLAIMER,
                "version": __version__,
                "provenance": provenance(),
                "job": identity,
            },
        )

    def _tell(self, counts: Counter[str]) -> None:
        names = (
            ("images", "images"),
            ("read", "read"),
            ("ALL", f"called ALL (probability above {self.threshold:g})"),
            ("HEM", "called HEM"),
            ("abstained", "of both: too near the threshold, for a person to decide"),
            ("with warnings", "unlike the training cells (column warnings)"),
            ("failed", "not read (column error)"),
            ("patients", "patients"),
        )
        rows = [(what, f"{counts[name]:,}") for name, what in names]
        terminal.show_table(f"Predictions in {self.out}", ("", "number"), rows)
        if counts["failed"]:
            terminal.warn(
                f"{counts['failed']:,} of {counts['images']:,} images could not be "
                "read; the column error gives the reasons"
            )
        if counts["patients"]:
            terminal.say(f"by patient: {_patients_file(self.out)}")
        for note in self.model.notes:
            terminal.warn(note)
        terminal.say(DISCLAIMER)


def _kinds(row: Row) -> Iterator[str]:
    """Yields what a row counts as."""
    yield "images"
    if row["patient"] is not None:
        yield "with a patient"
    if row["error"] is not None:
        yield "failed"
        return
    yield "read"
    yield row["decision"]
    if row["abstain"]:
        yield "abstained"
    if row["warnings"]:
        yield "with warnings"


def _record_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _patients_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.patients.csv")


def _record_of(out: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_record_file(out).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _exists(path: Path) -> InputError:
    return InputError(
        f"{path}: exists; give --overwrite to replace it, or another --out"
    )


def _explained(error: OSError, out: Path) -> InputError | OSError:
    """What to tell of a failure to read or write on the way to a table."""
    reason, folder = explain_failure(error), work_log.folder_of(out)
    if reason is None:
        return error
    if folder.exists():
        reason += (
            f". What is done is kept in {folder}, and the same command goes on from "
            "there"
        )
    return InputError(reason)
