"""What a run leaves in its folder and shows at its end."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allcls_jax import terminal
from allcls_jax.config import DataSource
from allcls_jax.data.cells import COLUMNS, CellTable
from allcls_jax.data.splits import LEAKY, Partition, Split
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


def notes(
    source: DataSource, weights: Mapping[str, Any], partition: Partition | None
) -> list[str]:
    """Returns what a reader of the figures must know.

    Args:
      source: of the cells.
      weights: as in `results.json`.
      partition: how the images were divided; None where nothing was trained.
    """
    found = []
    if source is DataSource.SYNTHETIC:
        found.append("synthetic cells")
    if weights["source"] == "random":
        found.append("random backbone weights")
    if partition is not None and partition.leaky:
        found.append(LEAKY)
    return found


def write(folder: Path, predictions: Predictions, results: dict[str, Any]) -> None:
    """Writes `predictions.csv`, `confusion_matrix.png` and, last, `results.json`."""
    write_atomically(folder / "predictions.csv", predictions.to_csv())
    data, note = results["data"], "; ".join(results["notes"])
    title = f"Test: {data['test_set']}".replace(f", {LEAKY}", "")
    picture = plots.confusion_matrix(results["test"]["confusion_matrix"], title, note)
    plots.save(folder / "confusion_matrix.png", picture)
    write_json(folder / "results.json", results)


def show(results: Mapping[str, Any], folder: Path) -> None:
    """Prints the final table."""
    columns = {
        f"{use} ({results['data']['test_set']})"
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


def trained_on(folder: Path, table: CellTable) -> int:
    """Returns how many images of a table a run was trained on or chosen by."""
    with (folder / PARTITION_FILE).open(encoding="utf-8", newline="") as file:
        seen = {
            record["sha256"]
            for record in csv.DictReader(file)
            if record["split"] != Split.TEST
        }
    return sum(sha256 in seen for sha256 in table.sha256.tolist())


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
