"""Tables of predictions as CSV, JSON lines or Parquet, and the one by patient.

Rows are written as they come, into a file beside, which is put in its place when it is
whole. The same rows give the same bytes.
"""

import contextlib
import csv
import dataclasses
import enum
import importlib.util
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from allcls_jax.data.files import natural
from allcls_jax.errors import InputError
from allcls_jax.serving.model import Prediction
from allcls_jax.serving.prediction.disk_sort import sorted_lines

COLUMNS = tuple(field.name for field in dataclasses.fields(Prediction))

PATIENT_COLUMNS = (
    "patient",
    "images",  # all of the patient's
    "read",  # of these, those that could be read; the other figures are of them
    "mean_probability",  # calibrated P(ALL); empty where none could be read
    "share_all",  # called ALL at the threshold
    "abstained",
    "failed",  # could not be read
)

Row = Mapping[str, Any]  # as `Prediction.to_dict` gives it
Write = Callable[[Iterable[Row]], None]

_ROW_GROUP = 8192  # rows of a Parquet file that are compressed together


class Format(enum.StrEnum):
    """What a table's suffix stands for."""

    CSV = ".csv"
    JSON_LINES = ".jsonl"
    PARQUET = ".parquet"


def format_of(out: Path) -> Format:
    """Returns the format that a file's suffix asks for.

    Raises:
      InputError: if there is none, or the package that writes it is not installed.
    """
    try:
        kind = Format(out.suffix.lower())
    except ValueError:
        raise InputError(
            f"--out={out}: the suffix must be one of {', '.join(Format)}, which tells "
            "the format"
        ) from None
    if kind is Format.PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"--out={out}: Parquet needs pyarrow; pip install 'allcls-jax[parquet]', "
            f"or give a name in {Format.CSV} or {Format.JSON_LINES}"
        )
    return kind


@contextlib.contextmanager
def open_table(
    out: Path, *, beside: Path, about: Mapping[str, str] | None = None
) -> Iterator[Write]:
    """Gives a function that writes rows; the file is there when the block has ended.

    CSV joins warnings with `; ` and leaves empty what is not known. Left by an
    exception, nothing is written.

    Args:
      out: whose suffix tells the format.
      beside: a folder on the same disk for the unfinished file.
      about: kept in a Parquet file's metadata; the other formats have no place for it.

    Raises:
      InputError: as `format_of`.
      OSError: if it cannot be written.
    """
    open_kind = {
        Format.CSV: _open_csv,
        Format.JSON_LINES: _open_json_lines,
        Format.PARQUET: _open_parquet,
    }[format_of(out)]
    with (
        written_whole(out, beside=beside) as file,
        open_kind(file, about or {}) as write,
    ):
        yield write


@contextlib.contextmanager
def written_whole(out: Path, *, beside: Path) -> Iterator[IO[bytes]]:
    """Gives a file that takes its place when the block has ended without exception."""
    unfinished = beside / f"{out.name}.{os.getpid()}"
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def patient_line(row: Row) -> str | None:
    """Returns what `write_patients` needs of a row, or None without a patient."""
    if row["patient"] is None:
        return None
    kept = [row[name] for name in ("patient", "probability", "decision", "abstain")]
    return json.dumps(kept) + "\n"


def write_patients(lines: Iterable[str], out: Path, *, beside: Path) -> int:
    """Writes a csv with a row for each patient, in natural order.

    Args:
      lines: of `patient_line`.
      out: the csv.
      beside: a folder on the same disk for unfinished files.

    Returns:
      The number of patients.

    Raises:
      OSError: if it cannot be written.
    """
    number = 0
    with written_whole(out, beside=beside) as file, _as_text(file) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(PATIENT_COLUMNS)
        ordered = map(json.loads, sorted_lines(lines, beside, key=_patient_order))
        for patient, images in itertools.groupby(ordered, key=lambda row: row[0]):
            writer.writerow([patient, *_patient_figures(images)])
            number += 1
    return number


def _patient_order(line: str) -> tuple[Any, ...]:
    patient = json.loads(line)[0]
    return natural(patient), patient


def _patient_figures(images: Iterable[list[Any]]) -> list[Any]:
    """Returns a patient's row of `PATIENT_COLUMNS` behind the first."""
    failed = read = called_all = abstained = 0
    total = 0.0
    for _, probability, decision, abstain in images:
        if probability is None:
            failed += 1
            continue
        read += 1
        total += probability
        called_all += decision == "ALL"
        abstained += abstain
    shares = [total / read, called_all / read] if read else ["", ""]
    return [read + failed, read, *shares, abstained, failed]


@contextlib.contextmanager
def _as_text(file: IO[bytes]) -> Iterator[IO[str]]:
    """The same file, in UTF-8 with plain line breaks; stays open."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        yield text
        text.flush()
    finally:
        text.detach()


@contextlib.contextmanager
def _open_csv(file: IO[bytes], _: Mapping[str, str]) -> Iterator[Write]:
    with _as_text(file) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        yield lambda rows: writer.writerows(map(_csv_row, rows))


def _csv_row(row: Row) -> list[str]:
    return [_csv_cell(row[name]) for name in COLUMNS]


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "; ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextlib.contextmanager
def _open_json_lines(file: IO[bytes], _: Mapping[str, str]) -> Iterator[Write]:
    def write(rows: Iterable[Row]) -> None:
        for row in rows:
            ordered = {name: row[name] for name in COLUMNS}
            file.write(json.dumps(ordered, allow_nan=False).encode() + b"\n")

    yield write


@contextlib.contextmanager
def _open_parquet(file: IO[bytes], about: Mapping[str, str]) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        "probability": pa.float64(),
        "uncertainty": pa.float64(),
        "abstain": pa.bool_(),
        "warnings": pa.list_(pa.string()),
    }
    schema = pa.schema(
        [(name, kinds.get(name, pa.string())) for name in COLUMNS],
        metadata=dict(about),
    )
    waiting: list[Row] = []
    with parquet.ParquetWriter(file, schema) as writer:

        def write(rows: Iterable[Row]) -> None:
            waiting.extend(rows)
            while len(waiting) >= _ROW_GROUP:
                group = waiting[:_ROW_GROUP]
                del waiting[:_ROW_GROUP]
                writer.write_table(pa.Table.from_pylist(group, schema))

        yield write
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, schema))
