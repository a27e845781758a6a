"""What is known of one cell image, and the table of many.

The patient is a first-class key: a record without one cannot be made, and `patient`
travels with every row from the reader to the predictions.
"""

import csv
import dataclasses
import enum
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

ALL = 1  # leukemic lymphoblast, the positive class
HEM = 0  # normal cell
UNLABELLED = -1
NO_FOLD = -1


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
    sha256: np.ndarray  # (n,) str, hexadecimal, of the file's bytes
    # (n,) int64, pixels of the cell in its picture, before cropping and resizing.
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.image_id)

    def take(self, rows: np.ndarray | Sequence[int]) -> "CellTable":
        """Returns the table of these rows, in this order."""
        return CellTable(*(column[rows] for column in self.columns()))

    def columns(self) -> tuple[np.ndarray, ...]:
        """Returns the columns in their declared order."""
        return tuple(getattr(self, name) for name in COLUMNS)

    def fingerprint(self) -> str:
        """Returns a sha256 of every cell's record, independent of their order."""
        lines = sorted(
            "\t".join(map(str, row)) for row in zip(*self.columns(), strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Returns the number of images, patients, and images of each class."""
        return {
            "images": len(self),
            "patients": len(np.unique(self.patient)),
            "ALL": int(np.sum(self.label == ALL)),
            "HEM": int(np.sum(self.label == HEM)),
            "unlabelled": int(np.sum(self.label == UNLABELLED)),
        }

    def to_csv(self) -> str:
        """Returns the table as text, with a header line."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        columns = (column.tolist() for column in self.columns())
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue()


COLUMNS = tuple(field.name for field in dataclasses.fields(CellTable))


def table_from_rows(rows: Iterable[Sequence[str | int]]) -> CellTable:
    """Returns the table of rows, each with values in the order of `COLUMNS`."""
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    kinds: dict[str, type] = {"label": np.int64, "fold": np.int64, "area": np.int64}
    return CellTable(
        *(
            np.array(
                [kinds.get(name, str)(value) for value in column],
                dtype=kinds.get(name, str),
            )
            for name, column in zip(COLUMNS, columns, strict=True)
        )
    )


def concatenate(tables: Sequence[CellTable]) -> CellTable:
    """Returns the rows of all tables, of which there is at least one."""
    columns = zip(*(table.columns() for table in tables), strict=True)
    return CellTable(*(np.concatenate(column) for column in columns))


def table_from_csv(text: str) -> CellTable:
    """Returns the table that `CellTable.to_csv` wrote; ValueError for another text."""
    reader = csv.reader(io.StringIO(text))
    header = next(reader, [])
    if tuple(header) != COLUMNS:
        raise ValueError(f"columns {header} instead of {COLUMNS}")
    return table_from_rows(reader)
