"""What a run leaves in its folder and shows at its end."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import terminal
from allcls_jax.config import DataSource
from allcls_jax.data.cells import COLUMNS, CellTable
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import LEAKY, Partition, Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import plots
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.training.writers import write_atomically, write_json

PARTITION_FILE = "partition.csv"

_FIGURES = (
    "accuracy",
    "weighted_f1",
    "balanced_accuracy",
    "auroc",
    "sensitivity",
    "specificity",
)


def notes(cells: PackedCells, weights: Mapping[str, Any], *, leaky: bool) -> list[str]:
    """Returns what a reader of the figures must know.

    Args:
      cells: that they are of.
      weights: as in `results.json`.
      leaky: whether patients were trained and tested on.
    """
    found = []
    if cells.source is DataSource.SYNTHETIC:
        found.append("synthetic cells")
    if weights["source"] == "random":
        found.append("random backbone weights")
    if leaky:
        found.append(LEAKY)
    if cells.skipped:
        found.append(f"{len(cells.skipped)} images could not be read")
    return found


def write(
    folder: Path,
    predictions: Predictions,
    results: dict[str, Any],
    *,
    curves: bytes | None = None,
) -> None:
    """Writes the table, the pictures and, last, `results.json`.

    Args:
      folder: is made if it is not there.
      predictions: for `predictions.csv`.
      results: for `results.json`.
      curves: the PNG of the learning curves, where something was trained.
    """
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "predictions.csv", predictions.to_csv())
    data, note = results["data"], "; ".join(results["notes"])
    title = f"Test: {data['test_set']}" + (" (leaky)" if data["leaky"] else "")
    picture = plots.confusion_matrix(results["test"]["confusion_matrix"], title, note)
    plots.save(folder / "confusion_matrix.png", picture)
    if curves is not None:
        plots.save(folder / "curves.png", curves)
    write_json(folder / "results.json", results)


def show(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the final table."""
    leaky = ", leaky" if results["data"]["leaky"] else ""
    columns = {
        f"{use} ({results['data']['test_set']}{leaky})"
        if use == Split.TEST
        else str(use): results[use]
        for use in (Split.VALIDATION, Split.TEST)
        if use in results
    }
    rows: list[Sequence[object]] = [
        [
            name.replace("_", " "),
            *(_number(column[name]) for column in columns.values()),
        ]
        for name in _FIGURES
    ]
    rows.append([""] * (len(columns) + 1))
    rows += [
        [name, *(f"{column[key]:,}" for column in columns.values())]
        for name, key in (("images", "num_images"), ("patients", "num_patients"))
    ]
    for i, row in enumerate(("ALL", "HEM")):
        for j, column in enumerate(("ALL", "HEM")):
            counts = (f"{c['confusion_matrix'][i][j]:,}" for c in columns.values())
            rows.append([f"{row} called {column}", *counts])
    title = "Results" + "".join(f" — {note}" for note in results["notes"])
    terminal.show_table(title, ["", *columns], rows)
    for note in results["notes"]:
        terminal.warn(note)
    terminal.say(f"{terminal.duration(results['seconds'])}; all of it in {folder}")
    terminal.say(plots.DISCLAIMER)


def write_partition(folder: Path, table: CellTable, partition: Partition) -> None:
    """Writes the record of every cell used, with its split, to `partition.csv`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, "split"))
    for use, chosen in partition.rows().items():
        columns = (column.tolist() for column in table.take(chosen).columns())
        writer.writerows((*record, use) for record in zip(*columns, strict=True))
    write_atomically(folder / PARTITION_FILE, text.getvalue())


def read_partition(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's `partition.csv`.

    Raises:
      InputError: if it is missing or no such table.
    """
    path = folder / PARTITION_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"sha256", "patient", "split"} <= rows[0].keys():
            raise ValueError("not a table of cells with their splits")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); without it nobody knows what the run "
            "was trained on: train again"
        ) from error
    return rows


def shared_with_training(
    partition: Sequence[Mapping[str, str]], table: CellTable, *, same_patients: bool
) -> dict[str, int]:
    """Returns how many `images` and `patients` of a table a run has seen.

    Args:
      partition: from `read_partition`; training and validation count as seen.
      table: cells to be evaluated.
      same_patients: whether patients of both can be told by their names; if not, only
        those of shared images are known.
    """
    seen = [row for row in partition if row["split"] != Split.TEST]
    images = np.isin(table.sha256, [row["sha256"] for row in seen])
    patients = set(table.patient[images].tolist())
    if same_patients:
        patients |= {row["patient"] for row in seen} & set(table.patient.tolist())
    return {"images": int(images.sum()), "patients": len(patients)}


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
