"""What a run leaves in its folder and shows at its end."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.atomic import write_atomically, write_json
from allcls_jax.config import Config, DataSource
from allcls_jax.data.cells import CellTable
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import LEAKY, Partition, Split
from allcls_jax.evaluation import assessment, plots
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.evaluation.predictions import read as read_predictions
from allcls_jax.experiments.setup import Data

PREDICTIONS_FILE = "predictions.csv"
RESULTS_FILE = "results.json"
EVALUATION_FILE = "evaluation.json"
ENSEMBLE_FILE = "ensemble.csv"

_COUNTS = ("images", "patients", "groups", "ALL", "HEM")


def data_record(data: Data, config: Config) -> dict[str, Any]:
    """Returns what `results.json` tells of the cells."""
    split = config.data.split
    assert split is not None, "not resolved"
    return {
        "source": str(data.cells.source),
        "fingerprint": data.table.fingerprint(),
        "split": str(split),
        "leaky": split.leaky,
        "groups": _groups_file(config.data.groups),
        # With what it held, whatever folder it lay in.
        "without": config.data.without and Path(config.data.without).name,
        "skipped": len(data.cells.skipped),
        "counts": {"all": data.table.counts()},
    }


def _groups_file(path: str | None) -> str | None:
    """Returns which file named the groups, and what it held."""
    if path is None:
        return None
    content = Path(path).expanduser().read_bytes()
    return f"{Path(path).name} (sha256 {hashlib.sha256(content).hexdigest()[:16]}…)"


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


def split_notes(data: Data, partitions: Sequence[Partition]) -> list[str]:
    """Returns what a reader must know of who was tested.

    Args:
      data: the cells.
      partitions: of the runs that figures are of.
    """
    found = []
    if data.copies is not None:
        found.append("classes balanced by turned copies before the split")
    twins = {
        row
        for partition in partitions
        for row in partition.twins_of(Split.TRAIN).tolist()
    }
    if twins:
        found.append(f"{len(twins)} test images have a twin that was trained on")
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
    write_atomically(folder / PREDICTIONS_FILE, predictions.to_csv())
    data, note = results["data"], "; ".join(results["notes"])
    title = f"Test: {data['test_set']}" + (" (leaky)" if data["leaky"] else "")
    picture = plots.confusion_matrix(results["test"]["confusion_matrix"], title, note)
    write_atomically(folder / "confusion_matrix.png", picture)
    if curves is not None:
        write_atomically(folder / "curves.png", curves)
    write_json(folder / RESULTS_FILE, results)


def conclude(folder: Path, results: Mapping[str, Any], config: Config) -> None:
    """Assesses a folder's predictions, writes `evaluation.json` and shows the figures.

    Args:
      folder: holds `predictions.csv`.
      results: the content of its `results.json`.
      config: how figures are reported.
    """
    table = read_predictions(folder / PREDICTIONS_FILE)
    with terminal.track("figures and intervals", 1, "tables") as advance:
        found = assessment.assess(
            table,
            prevalence=config.evaluation.prevalence,
            num_resamples=config.evaluation.num_resamples,
        )
        advance(1)
    write_json(folder / EVALUATION_FILE, found)
    leaky = ", leaky" if results["data"]["leaky"] else ""
    title = f"Test: {results['data']['test_set']}{leaky}"
    title += "".join(f" — {note}" for note in results["notes"])
    terminal.show_table(title, *assessment.rows(found))
    if found["counts"]["runs"] > 1:
        _show_folds(found)
    if (together := results.get("ensemble")) is not None:
        a_fold = "" if results["kind"] == "evaluation" else " a fold"
        terminal.say(
            f"Ensemble of {together['members']} networks{a_fold}: "
            f"{in_one_line(together)}; their P(ALL) of an image spread by "
            f"{together['mean_spread']:.3f} on average ({ENSEMBLE_FILE})"
        )
        if (cost := together.get("cost")) is not None:
            terminal.say(
                f"{together['members']} networks x {results['views']} views: "
                f"{cost['passes_per_image']} passes an image, "
                f"{cost['times_one_pass']:.1f} times the time of one "
                f"({cost['images_per_second']:,.1f} instead of "
                f"{cost['images_per_second_of_one_pass']:,.1f} images a second)"
            )
    for note in (*results["notes"], *found["warnings"]):
        terminal.warn(note)
    terminal.say(f"{terminal.duration(results['seconds'])}; all of it in {folder}")
    terminal.say(DISCLAIMER)


def _show_folds(found: Mapping[str, Any]) -> None:
    """Prints each fold's figures, and those of all folds together, over seeds."""
    names = ("accuracy", "balanced_accuracy", "weighted_f1", "auroc")

    def cells(figures: Mapping[str, Any]) -> list[str]:
        told = []
        for name in names:
            mean, spread = figures[name]["mean"], figures[name]["sd"]
            text = "undefined" if mean is None else f"{mean:.3f}"
            told.append(text if spread is None else f"{text} ± {spread:.3f}")
        return told

    many = len({row["repeat"] for row in found["by_fold"]}) > 1
    rows: list[Sequence[object]] = [
        (
            f"fold {row['test_fold']}" + (f", repeat {row['repeat']}" if many else ""),
            f"{row['images']:,}",
            row["patients"],
            *cells(row["figures"]),
        )
        for row in found["by_fold"]
    ]
    counts = found["counts"]
    pooled = (f"{counts['images']:,}", counts["patients"], *cells(found["spread"]))
    # Of networks that each test all images, nothing is pooled.
    name = "all" if counts["runs"] == counts["passes"] else "pooled"
    rows += [("",) * 7, (name, *pooled)]
    header = ("", "images", "patients", *(name.replace("_", " ") for name in names))
    terminal.show_table("By fold: mean ± standard deviation over seeds", header, rows)


def in_one_line(results: Mapping[str, Any]) -> str:
    """Returns the figures of one of many tables."""
    test = results["test"]
    return ", ".join(
        f"{name.replace('_', ' ')} "
        + ("undefined" if test[name] is None else f"{test[name]:.4f}")
        for name in ("weighted_f1", "auroc")
    )


def show_partitions(partitions: Sequence[Partition], table: CellTable) -> None:
    """Prints who trains, validates and tests, and what the sides share.

    Args:
      partitions: of the table; one, or those of all folds.
      table: the cells.
    """
    rows: list[Sequence[object]] = []
    for partition in partitions:
        rows += [("",) * 8] if rows else []
        if len(partitions) > 1:
            rows.append((partition.test_name, *("",) * 7))
        for row in partition.summary(table):
            tested = row["use"] == Split.TEST
            counts = (f"{row[key]:,}" for key in _COUNTS)
            shared = ("", "") if tested else (row["shared_groups"], row["twins"])
            rows.append((f"  {row['use']}", *counts, *shared))
    header = ("", *_COUNTS, "shared", "twins")
    title = "Partition"
    if len(partitions) == 1:
        title += f" (test: {partitions[0].test_name})"
    terminal.show_table(title, header, rows)
    terminal.say(
        "shared: groups that are tested too; twins: test images of a cell that is here"
    )
    for reason, number in partitions[0].left_out.items():
        terminal.say(f"{number:,} images are left out: {reason}")
    if partitions[0].leaky:
        terminal.warn(f"the split is by image: {LEAKY}; its scores flatter")
