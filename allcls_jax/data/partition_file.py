"""`partition.csv`: every cell that a run has used, with its group and its split."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from allcls_jax.config import SplitKind
from allcls_jax.data.cells import COLUMNS, CellTable
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError

PARTITION_FILE = "partition.csv"

_REQUIRED = frozenset({"image_id", "sha256", "patient", "group", "split"})
_SPLITS = frozenset(map(str, Split))


def to_csv(table: CellTable, partition: Partition) -> str:
    """Returns the record of every cell that has a use, with its group and split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, "group", "split"))
    for use, rows in partition.rows().items():
        groups = map(str, partition.groups.group[rows])
        writer.writerows(
            (*record, group, use)
            for record, group in zip(table.records(rows), groups, strict=True)
        )
    return text.getvalue()


def read(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's `partition.csv`.

    Raises:
      InputError: if it is missing or no such table.
    """
    return list(_rows(folder))


def verify(folder: Path, tested: np.ndarray, kind: SplitKind) -> None:
    """Makes sure that a run's test images are those whom its split promises.

    Args:
      folder: of the run.
      tested: (n,) str ids of the images that figures are computed of.
      kind: of the split.

    Raises:
      InputError: if they are not the partition's test images, each once, or an image
        stands in two of training, validation and test, or (unless the split is by
        image) a patient or, where groups are kept whole, a group or a file's bytes.
    """
    keys = ["image_id"]
    if not kind.leaky:
        keys.append("patient")
        if kind is not SplitKind.OFFICIAL:
            keys += ["group", "sha256"]
    # One pass for each question: rows are many, and as dictionaries they are large.
    test = [row["image_id"] for row in _rows(folder) if row["split"] == Split.TEST]
    if sorted(test) != sorted(tested.tolist()):
        raise InputError(
            f"{folder}: predictions and {PARTITION_FILE} name different test images; "
            "train again in another folder"
        )
    for key in keys:
        use_of: dict[str, str] = {}
        for row in _rows(folder):
            use = use_of.setdefault(row[key], Split(row["split"]))
            if use != row["split"]:
                raise InputError(
                    f"{folder / PARTITION_FILE}: {key} {row[key]!r} stands in {use} "
                    f"and in {row['split']}, which data.split = {str(kind)!r} rules "
                    "out; train again in another folder"
                )


def shared_with_training(
    partition: Sequence[Mapping[str, str]], table: CellTable, *, same_patients: bool
) -> dict[str, int]:
    """Returns how many `images` and `patients` of a table a run has seen.

    Args:
      partition: from `read`; training and validation count as seen.
      table: cells to be evaluated.
      same_patients: whether patients of both can be told by their names; then those of
        a group that was seen count too. If not, only those of shared images are known.
    """
    seen = [row for row in partition if row["split"] != Split.TEST]
    images = np.isin(table.sha256, [row["sha256"] for row in seen])
    patients = set(table.patient[images].tolist())
    if same_patients:
        groups = {row["group"] for row in seen}
        known = {row["patient"] for row in seen}
        known |= {row["patient"] for row in partition if row["group"] in groups}
        patients |= known & set(table.patient.tolist())
    return {"images": int(images.sum()), "patients": len(patients)}


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a run's `partition.csv`; raises as `read`."""
    path = folder / PARTITION_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not set(reader.fieldnames or ()) >= _REQUIRED:
                raise ValueError("not a table of cells with their groups and splits")
            row = None
            for row in reader:
                if row["split"] not in _SPLITS:
                    raise ValueError(f"a split called {row['split']!r}")
                yield row
            if row is None:
                raise ValueError("not one row")
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); without it nobody knows what the run "
            "was trained on: train again"
        ) from error
