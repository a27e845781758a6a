"""What is known of one cell image, and the table of many.

The patient is a first-class key: a record without one cannot be made, and `patient`
travels with every row from the reader to the predictions.
"""

import csv
import dataclasses
import enum
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np

ALL = 1  # leukemic lymphoblast, the positive class
HEM = 0  # normal cell
UNLABELLED = -1
NO_FOLD = -1

# Rows that are Python objects at one time; a table of columns is several times smaller.
_BLOCK = 1024


class Part(enum.StrEnum):
    """The parts in which C-NMC 2019 was released; other data is all `train`."""

    TRAIN = "train"
    PRELIM = "prelim"
    FINAL = "final"  # its labels were never published


class ImageSource(Protocol):
    """Where the bytes of one image lie; must be picklable."""

    @property
    def name(self) -> str:
        """What to call it in a message, such as its path."""
        ...

    def read(self) -> bytes:
        """Returns the encoded image. Raises OSError if that is impossible."""
        ...

    def stamp(self) -> str:
        """Returns what changes when the image changes: path, size and mtime."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CellFile:
    """One image where it lies, and what its reader knows of it."""

    image_id: str  # unique in its data set, the same on every machine
    patient: str
    label: int  # ALL, HEM or UNLABELLED
    part: Part = Part.TRAIN
    fold: int = NO_FOLD  # official fold 0 to 2, or NO_FOLD
    source: ImageSource
    # Larger images are cut to their centre square of this many pixels first.
    max_side: int | None = None

    def record(self) -> tuple[str, str, int, str, int]:
        """Returns what its reader knows, in the order of `COLUMNS`."""
        return self.image_id, self.patient, self.label, str(self.part), self.fold


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DiskImage:
    """An image in a file of its own."""

    path: str  # as text, so that ten thousand of them stay small and picklable

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    def read(self) -> bytes:
        """Returns the file's bytes."""
        return Path(self.path).read_bytes()

    def stamp(self) -> str:
        """Returns path, size and modification time."""
        status = Path(self.path).stat()
        return f"{self.path}|{status.st_size}|{status.st_mtime_ns}"


@dataclasses.dataclass(frozen=True, slots=True)
class CellTable:
    """Columns of n cells, row i of each belonging to the same image."""

    image_id: np.ndarray  # (n,) str, unique
    patient: np.ndarray  # (n,) str
    label: np.ndarray  # (n,) int64: ALL, HEM or UNLABELLED
    part: np.ndarray  # (n,) str, values of `Part`
    fold: np.ndarray  # (n,) int64: 0 to 2 or NO_FOLD
    # (n,) StringDType, hexadecimal, of the file's bytes: as fixed-width str it would
    # be two thirds of the table.
    sha256: np.ndarray
    # (n,) int64, pixels of the cell in its picture, before cropping and resizing.
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: np.ndarray | Sequence[int]) -> "CellTable":
        """Returns the table of these rows, in this order; of all of them, itself."""
        rows = np.asarray(rows, dtype=None if len(rows) else np.int64)
        if rows.dtype.kind in "iu" and np.array_equal(rows, np.arange(len(self))):
            return self
        return CellTable(*(column[rows] for column in self.columns()))

    def columns(self) -> tuple[np.ndarray, ...]:
        """Returns the columns in their declared order."""
        return tuple(getattr(self, name) for name in COLUMNS)

    def records(self, rows: np.ndarray) -> Iterator[tuple[str | int, ...]]:
        """Yields these rows as Python values, in this order, some at a time."""
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            columns = (column[block].tolist() for column in self.columns())
            yield from zip(*columns, strict=True)

    def fingerprint(self) -> str:
        """Returns a sha256 of every cell's record, independent of their order."""
        digest = hashlib.sha256()
        # With the tab, as whole lines would be sorted.
        order = np.argsort(np.strings.add(self.image_id, "\t"))
        for number, row in enumerate(self.records(order)):
            line = "\t".join(map(str, row))
            digest.update(f"\n{line}".encode() if number else line.encode())
        return digest.hexdigest()

    def counts(self) -> dict[str, int]:
        """Returns the number of images, patients, and images of each class."""
        return {
            "images": len(self),
            "patients": len(np.unique(self.patient)),
            "ALL": int(np.sum(self.label == ALL)),
            "HEM": int(np.sum(self.label == HEM)),
            "unlabelled": int(np.sum(self.label == UNLABELLED)),
        }


COLUMNS = tuple(field.name for field in dataclasses.fields(CellTable))


_KINDS: dict[str, type] = {"label": np.int64, "fold": np.int64, "area": np.int64}
_DTYPES = {"sha256": np.dtypes.StringDType()}


def table_from_rows(rows: Iterable[Sequence[str | int]]) -> CellTable:
    """Returns the table of rows, each with values in the order of `COLUMNS`.

    The rows may come one at a time: no more than a few thousand are kept as they are.
    """
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    remaining = iter(rows)
    while block := list(itertools.islice(remaining, _BLOCK)):
        columns = zip(*block, strict=True)
        for name, values in zip(COLUMNS, columns, strict=True):
            blocks[name].append(_column(name, values))
    return CellTable(
        # Each column's blocks are let go before the next one is joined.
        *(np.concatenate([_column(name, ()), *blocks.pop(name)]) for name in COLUMNS)
    )


def concatenate(tables: Sequence[CellTable]) -> CellTable:
    """Returns the rows of all tables, of which there is at least one."""
    columns = zip(*(table.columns() for table in tables), strict=True)
    return CellTable(*(np.concatenate(column) for column in columns))


def read_table(path: Path) -> CellTable:
    """Returns the table that `table_writer` wrote; ValueError for another file.

    The file is read twice, so that each column is made at its size at once.
    """
    number, lengths = 0, [0] * len(COLUMNS)
    with path.open(encoding="utf-8", newline="") as file:
        for row in _rows(file):
            number += 1
            pairs = zip(lengths, map(len, row), strict=True)
            lengths = [max(pair) for pair in pairs]
    columns = [
        np.empty(number, _KINDS.get(name) or _DTYPES.get(name) or f"U{length}")
        for name, length in zip(COLUMNS, lengths, strict=True)
    ]
    start = 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = _rows(file)
        while block := list(itertools.islice(rows, _BLOCK)):
            for name, column, values in zip(
                COLUMNS, columns, zip(*block, strict=True), strict=True
            ):
                column[start : start + len(block)] = _column(name, values)
            start += len(block)
    return CellTable(*columns)


def table_writer(file: TextIO) -> Callable[[Sequence[str | int]], object]:
    """Writes a table's header and returns what writes its rows, one at a time."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    return writer.writerow


def _rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields a table's rows; ValueError if it has other columns."""
    reader = csv.reader(lines)
    header = next(reader, [])
    if tuple(header) != COLUMNS:
        raise ValueError(f"columns {header} instead of {COLUMNS}")
    yield from reader


def _column(name: str, values: Sequence[str | int]) -> np.ndarray:
    """Returns values of a column in its type."""
    kind = _KINDS.get(name, str)
    return np.array(list(map(kind, values)), dtype=_DTYPES.get(name, kind))
