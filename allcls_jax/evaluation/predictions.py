"""The table that every figure comes from: one row an image and the run that scored it.

A run is one trained model, named by (repeat, test_fold, seed). A pass is (repeat,
seed): its test folds together test each image once. Where they all test the same
images, as on other cells than those of a cross-validation, each is a pass of its own.
`check` holds a table to this; whatever reads, joins or concatenates one calls it.
"""

import csv
import dataclasses
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from allcls_jax.data.cells import ALL, HEM, NO_FOLD, CellTable
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError, list_problems

# Rows that are Python objects at one time.
_BLOCK = 4096

_REMEDY = "Mend the table, or evaluate again to have it written anew."


class Run(NamedTuple):
    """The name of one trained model."""

    repeat: int
    test_fold: int
    seed: int


class Pass(NamedTuple):
    """The name of the runs that test each image once between them."""

    repeat: int
    seed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Predictions:
    """Rows of one or several runs; columns have the same length n."""

    image_id: np.ndarray  # (n,) str
    patient: np.ndarray  # (n,) str
    group: np.ndarray  # (n,) str, of patients that share cells; else the patient
    label: np.ndarray  # (n,) int64: ALL or HEM
    probability: np.ndarray  # (n,) float64 in [0, 1], P(ALL) as the model gave it
    part: np.ndarray  # (n,) str, values of `cells.Part`
    fold: np.ndarray  # (n,) int64: official fold or NO_FOLD
    split: np.ndarray  # (n,) str: `Split.VALIDATION` or `Split.TEST`
    area: np.ndarray  # (n,) int64, pixels of the cell
    repeat: np.ndarray  # (n,) int64
    test_fold: np.ndarray  # (n,) int64
    seed: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.image_id)

    def columns(self) -> tuple[np.ndarray, ...]:
        """Returns the columns in the order of `HEADER`."""
        return tuple(getattr(self, name) for name in HEADER)

    def take(self, rows: np.ndarray | Sequence[int]) -> "Predictions":
        """Returns these rows, in this order; a mask (n,) bool takes where it is set."""
        return Predictions(*(column[rows] for column in self.columns()))

    def of(self, split: str) -> "Predictions":
        """Returns the rows of one split."""
        return self.take(self.split == split)

    def runs(self) -> Iterator[tuple[Run, "Predictions"]]:
        """Yields each run with its rows, by ascending name."""
        for key, rows in self._parts(("repeat", "test_fold", "seed")):
            yield Run(*key), rows

    def passes(self) -> Iterator[tuple[Pass, "Predictions"]]:
        """Yields each pass with its rows, by ascending name."""
        for key, rows in self._parts(("repeat", "seed")):
            parts = [part for _, part in rows.runs()]
            tested = [set(part.of(Split.TEST).image_id.tolist()) for part in parts]
            alike = bool(tested[0]) and all(one == tested[0] for one in tested)
            for part in parts if alike else [rows]:
                yield Pass(*key), part

    def _parts(
        self, names: Sequence[str]
    ) -> Iterator[tuple[tuple[int, ...], "Predictions"]]:
        keys = np.stack([getattr(self, name) for name in names], axis=1)
        found, number = np.unique(keys, axis=0, return_inverse=True)
        for i, key in enumerate(found.tolist()):
            yield tuple(key), self.take(np.flatnonzero(number.ravel() == i))

    def shared_groups(self) -> tuple[str, ...]:
        """Returns the groups that validate and test the same run: none if not leaky."""
        shared: set[str] = set()
        for _, rows in self.runs():
            shared |= set(rows.of(Split.VALIDATION).group.tolist()) & set(
                rows.of(Split.TEST).group.tolist()
            )
        return tuple(sorted(shared))

    def check(self, title: str = "predictions") -> None:
        """Raises an InputError that names every row which breaks a rule of the table.

        Args:
          title: what the table is, such as its path.
        """
        assert len({len(column) for column in self.columns()}) == 1, "ragged"
        if not len(self):
            raise InputError(f"{title}: no rows; {_REMEDY}")
        problems = list(self._wrong_values()) or list(self._contradictions())
        if problems:
            raise list_problems(title, problems, remedy=_REMEDY)
        if not np.any(self.split == Split.TEST):
            raise InputError(f"{title}: no row has the split 'test'; {_REMEDY}")

    def _wrong_values(self) -> Iterator[str]:
        """Yields what is wrong with single values."""
        inside = (self.probability >= 0) & (self.probability <= 1)  # False for NaN
        rules = (
            ("image_id", _filled(self.image_id), "is empty"),
            ("patient", _filled(self.patient), "is empty; every image has a patient"),
            ("group", _filled(self.group), "is empty; without groups give the patient"),
            ("label", np.isin(self.label, (ALL, HEM)), f"is not {ALL} (ALL), {HEM}"),
            ("probability", inside, "is not within [0, 1]"),
            (
                "split",
                np.isin(self.split, (Split.VALIDATION, Split.TEST)),
                "is neither validation nor test",
            ),
            ("area", self.area >= 0, "is negative"),
        )
        for name, good, rule in rules:
            for row in np.flatnonzero(~good).tolist():
                value = getattr(self, name)[row].item()
                yield (
                    f"row {row + 1} (image {self.image_id[row]}): {name} = {value!r} "
                    f"{rule}"
                )

    def _contradictions(self) -> Iterator[str]:
        """Yields what rows say against each other."""
        for owner, name in (
            ("image_id", "label"),
            ("image_id", "patient"),
            ("patient", "group"),
        ):
            for key, values in _several(getattr(self, owner), getattr(self, name)):
                yield f"{owner} {key} has several values of {name}: {values}"
        for run, rows in self.runs():
            for image in _repeated(rows.image_id):
                yield f"image {image} stands more than once in {_named(run)}"
        for key, rows in self.passes():
            for image in _repeated(rows.of(Split.TEST).image_id):
                yield f"image {image} is tested more than once in {_named(key)}"

    def to_csv(self) -> str:
        """Returns the table as text; an image without a fold has an empty one."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        for start in range(0, len(self), _BLOCK):
            part = [column[start : start + _BLOCK] for column in self.columns()]
            columns = {
                name: column.tolist() for name, column in zip(HEADER, part, strict=True)
            }
            columns["fold"] = [
                "" if fold == NO_FOLD else fold for fold in columns["fold"]
            ]
            # As many digits as give back the same number.
            columns["probability"] = [repr(float(p)) for p in columns["probability"]]
            writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()


HEADER = tuple(field.name for field in dataclasses.fields(Predictions))

_KINDS: dict[str, type] = {
    "probability": float,
    **dict.fromkeys(("label", "fold", "area", "repeat", "test_fold", "seed"), int),
}


def join(
    table: CellTable,
    group: np.ndarray,
    probabilities: Mapping[str, Mapping[int, float]],
    *,
    repeat: int,
    test_fold: int,
    seed: int,
) -> Predictions:
    """Returns the predictions of one run, split by split, each in the table's order.

    Args:
      table: of all cells.
      group: (len(table),) str, the group of each cell's patient.
      probabilities: split → row of the table → P(ALL).
      repeat: with the next two, the run's name.
      test_fold: likewise.
      seed: likewise.

    Raises:
      InputError: if the rows break a rule of the table.
    """
    assert len(group) == len(table), (len(group), len(table))
    keys = [(use, row) for use, found in probabilities.items() for row in sorted(found)]
    rows = np.array([row for _, row in keys], dtype=np.int64)
    cells = table.take(rows)
    result = Predictions(
        image_id=cells.image_id,
        patient=cells.patient,
        group=np.asarray(group)[rows],
        label=cells.label,
        probability=np.array(
            [probabilities[use][row] for use, row in keys], dtype=np.float64
        ),
        part=cells.part,
        fold=cells.fold,
        split=np.array([str(use) for use, _ in keys], dtype=str),
        area=cells.area,
        repeat=np.full(len(rows), repeat, dtype=np.int64),
        test_fold=np.full(len(rows), test_fold, dtype=np.int64),
        seed=np.full(len(rows), seed, dtype=np.int64),
    )
    result.check()
    return result


def concatenate(tables: Sequence[Predictions]) -> Predictions:
    """Returns the rows of several tables, one after the other.

    Raises:
      InputError: if together they break a rule, as when a run stands in two of them.
    """
    assert tables, "nothing to concatenate"
    columns = (
        np.concatenate(parts)
        for parts in zip(*(table.columns() for table in tables), strict=True)
    )
    result = Predictions(*columns)
    result.check()
    return result


def read(path: Path) -> Predictions:
    """Returns the table that `Predictions.to_csv` wrote.

    Args:
      path: of a csv with the columns of `HEADER`, in any order; others are ignored.

    Raises:
      InputError: if it cannot be read or breaks a rule of the table.
    """
    try:
        # A spreadsheet puts a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = _read_columns(csv.DictReader(file, strict=True), path)
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    result = Predictions(*columns)
    result.check(str(path))
    return result


def _read_columns(reader: csv.DictReader, path: Path) -> list[np.ndarray]:
    """Returns the columns of a table, a few thousand rows being text at a time."""
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in HEADER}
    wrong: dict[str, list[str]] = {name: [] for name in HEADER}
    ragged: list[str] = []
    number = 0
    while records := list(itertools.islice(reader, _BLOCK)):
        missing = [name for name in HEADER if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"{path}: the columns {', '.join(missing)} are missing; a table of "
                f"predictions has {', '.join(HEADER)}. {_REMEDY}"
            )
        rows = list(enumerate(records, start=number + 1))
        number += len(records)
        ragged += [
            f"row {row} does not have as many values as there are columns"
            for row, record in rows
            if None in record or None in record.values()
        ]
        if not ragged:
            for name in HEADER:
                blocks[name].append(_column(name, rows, wrong[name]))
    if not number:
        raise InputError(f"{path}: no rows; {_REMEDY}")
    if problems := ragged or [problem for name in HEADER for problem in wrong[name]]:
        raise list_problems(str(path), problems, remedy=_REMEDY)
    return [np.concatenate(blocks.pop(name)) for name in HEADER]


def _column(
    name: str, rows: Sequence[tuple[int, dict[str, Any]]], problems: list[str]
) -> np.ndarray:
    """Returns a column's values and appends to `problems` what is none."""
    kind = _KINDS.get(name, str)
    values = []
    for row, record in rows:
        text = record[name]
        try:
            value = NO_FOLD if name == "fold" and text == "" else kind(text)
            if kind is int:
                np.int64(value)  # may be too large for one
            values.append(value)
        except (ValueError, OverflowError):
            what = "a number" if kind is float else "a whole number"
            problems.append(f"row {row}: {name} = {text!r} is not {what}")
    dtype = {float: np.float64, int: np.int64}.get(kind, str)
    return np.array(values, dtype=dtype)


def _filled(column: np.ndarray) -> np.ndarray:
    return np.strings.str_len(np.strings.strip(column)) > 0


def _several(
    owner: np.ndarray, value: np.ndarray
) -> Iterator[tuple[str, list[int | str]]]:
    """Yields each owner that has more than one value, with the values."""
    values: dict[str, set[int | str]] = {}
    for key, found in zip(owner.tolist(), value.tolist(), strict=True):
        values.setdefault(key, set()).add(found)
    for key, several in values.items():
        if len(several) > 1:
            yield key, sorted(several)


def _repeated(column: np.ndarray) -> list[str]:
    values, count = np.unique(column, return_counts=True)
    return values[count > 1].tolist()


def _named(key: Run | Pass) -> str:
    return ", ".join(f"{name} {value}" for name, value in key._asdict().items())
