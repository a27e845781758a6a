"""Simple ways to tell the classes apart, on the very splits of a run.

    allcls baselines WORKDIR

fits each baseline on a run's own training images, predicts its validation and test
images once, and sets the figures beside the model's. Validation serves the baselines
for what it serves the model in these figures, and for no choice of theirs.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from allcls_jax import DISCLAIMER, command_line, config_files, terminal
from allcls_jax.atomic import write_atomically, write_json
from allcls_jax.config import Config
from allcls_jax.config_rules import validate
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import assessment, predictions
from allcls_jax.evaluation.baselines import classifiers
from allcls_jax.evaluation.baselines import inputs as of_cells
from allcls_jax.evaluation.baselines.inputs import PartitionRows, Uses
from allcls_jax.evaluation.predictions import Predictions, Run
from allcls_jax.training import inputs

FOLDER = "baselines"
FILE = "baselines.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Baseline:
    """A way to tell the classes apart.

    Attributes:
      key: of its files.
      name: as shown.
      description: what it sees and how it decides.
      fit: on the figures of training images.
    """

    key: str
    name: str
    description: str
    fit: classifiers.Fit


BASELINES = (
    Baseline(
        "majority",
        "majority class",
        "the share of ALL among the training images, for every image",
        classifiers.fit_share,
    ),
    Baseline(
        "background",
        "background only",
        "logistic regression on what lies outside the cell (mean, deviation and place "
        "of anything that is not black); above chance, files or preparation leak",
        classifiers.fit_logistic,
    ),
    Baseline(
        "cell_area",
        "cell area",
        "logistic regression on the logarithm of the cell's area",
        classifiers.fit_logistic,
    ),
    Baseline(
        "stain",
        "mean stain colour",
        "logistic regression on the cell's mean optical density in red, green, blue",
        classifiers.fit_logistic,
    ),
    Baseline(
        "classical",
        "classical pipeline",
        "k-means segmentation; energy, entropy, contrast and correlation of the "
        "nucleus (grey-level co-occurrence), shape of cell and nucleus; support vector "
        "machine (RBF)",
        classifiers.fit_svm,
    ),
    Baseline(
        "pooled_features",
        "pooled features",
        "the pretrained backbone's features, averaged over the picture; logistic "
        "regression, its regularisation chosen on training patients",
        classifiers.fit_regularised,
    ),
)


def predict(
    baseline: Baseline, values: np.ndarray, label: np.ndarray, uses: Uses
) -> dict[str, dict[int, float]]:
    """Fits a baseline on a run's training images and predicts the others.

    Args:
      baseline: how.
      values: (n, d) float64 figures of all images.
      label: (n,) int64; only those of training images are looked at.
      uses: which images those are, and which are predicted.

    Returns:
      Split → row → P(ALL), of validation and test.
    """
    train = uses.rows[Split.TRAIN]
    found: dict[str, dict[int, float]] = {}
    # Matrices as small as these are slower on several threads, on a busy machine by a
    # factor of twenty.
    with threadpool_limits(limits=1):
        function = baseline.fit(values[train], label[train], uses.group[train])
        for use in (Split.VALIDATION, Split.TEST):
            rows = uses.rows[use]
            probability = function(values[rows])
            found[use] = dict(zip(rows.tolist(), probability.tolist(), strict=True))
    return found


def evaluate(
    workdir: Path, *, data: str | None = None, cache: str | None = None
) -> dict[str, Any]:
    """Fits and predicts every baseline on the splits of a run or cross-validation.

    Args:
      workdir: of one finished run, or of a finished cross-validation; gets a folder
        `baselines` with a table of predictions of each, and `baselines.json`.
      data: where the cells lie now; None: where the configuration says.
      cache: likewise of packed cells, weights, features and descriptors.

    Returns:
      The content of `baselines.json`.

    Raises:
      InputError: if the workdir is not finished, its cells or weights are not found,
        or are others than it was trained with.
    """
    started = time.monotonic()
    config = config_files.read_run(workdir / "config.json")
    config.data.dir = data or config.data.dir
    config.cache_dir = cache or config.cache_dir
    validate(config)
    model = predictions.read(workdir / "predictions.csv")
    notes = _notes(workdir)
    partitions = of_cells.read_partitions(workdir, model)
    cells = inputs.open_cells(config)
    tables = _predict_all(config, cells, partitions)
    settings = {
        "prevalence": config.evaluation.prevalence,
        "num_resamples": config.evaluation.num_resamples,
    }
    found: list[dict[str, Any]] = []
    (workdir / FOLDER).mkdir(exist_ok=True)
    with terminal.track("figures", len(BASELINES) + 1, "tables") as advance:
        for baseline in BASELINES:
            table = tables[baseline.key]
            write_atomically(workdir / FOLDER / f"{baseline.key}.csv", table.to_csv())
            found.append(
                {
                    "key": baseline.key,
                    "name": baseline.name,
                    "description": baseline.description,
                    "figures": assessment.summarise(table, **settings)["figures"],
                }
            )
            advance(1)
        summary = assessment.summarise(model, **settings)
        advance(1)
    content = {
        "baselines": found,
        "model": {"name": str(config.model.name), "figures": summary["figures"]},
        "settings": summary["settings"],
        "notes": notes + _findings(found, len({run.test_fold for run in partitions})),
        "seconds": round(time.monotonic() - started, 1),
        "disclaimer": DISCLAIMER,
    }
    write_json(workdir / FILE, content)
    return content


def show(content: Mapping[str, Any]) -> None:
    """Prints the table of `baselines.json`, the model last."""
    rows: list[Sequence[object]] = [
        (baseline["name"], *_shown(baseline["figures"]))
        for baseline in content["baselines"]
    ]
    model = content["model"]
    rows += [("",) * 5, (f"the model ({model['name']})", *_shown(model["figures"]))]
    percent = f"{content['settings']['confidence']:.0%}".replace("%", " %")
    terminal.show_table(
        "Baselines on the same test images",
        (
            "",
            f"weighted F1, {percent}",
            f"AUROC, {percent}",
            "balanced acc.",
            "acc. by patient",
        ),
        rows,
    )
    for note in content["notes"]:
        terminal.warn(note)
    terminal.say(DISCLAIMER)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates baselines beside a run: `WORKDIR`. Returns the exit code."""
    args = parser().parse_args(argv)

    def compare() -> None:
        content = evaluate(args.workdir.expanduser(), data=args.data, cache=args.cache)
        show(content)
        terminal.say(
            f"{terminal.duration(content['seconds'])}; all of it in "
            f"{args.workdir / FILE}"
        )

    return command_line.run(compare)


def parser() -> command_line.Parser:
    """Returns the reader of its arguments."""
    parser = command_line.Parser(
        "baselines",
        "Fits simple baselines on the splits of a run or cross-validation and sets "
        "their figures beside the model's.",
        "allcls baselines runs/vgg19-cv/2026-01-31T12-00-00Z",
    )
    parser.add_argument("workdir", type=Path, help="of a run or a cross-validation")
    parser.add_argument("--data", help="where the cells lie, if not as at training")
    parser.add_argument("--cache", help="of cells, weights, features and descriptors")
    return parser


def _predict_all(
    config: Config, cells: PackedCells, partitions: Mapping[Run, PartitionRows]
) -> dict[str, Predictions]:
    """Returns the predictions of each baseline, of all runs in one table."""
    tables: dict[str, list[Predictions]] = {baseline.key: [] for baseline in BASELINES}
    for pictures in of_cells.pictures(config, cells, partitions):
        found: dict[tuple[str, bytes], dict[str, dict[int, float]]] = {}
        total = len(pictures.uses) * len(BASELINES)
        with terminal.track("baselines", total, "fits") as advance:
            for run, uses in pictures.uses.items():
                for baseline in BASELINES:
                    # Runs that differ in the seed of the network alone are divided
                    # alike: what is fitted once serves them all.
                    key = (baseline.key, _content(uses))
                    if key not in found:
                        found[key] = predict(
                            baseline,
                            pictures.values[baseline.key],
                            pictures.table.label,
                            uses,
                        )
                    tables[baseline.key].append(
                        predictions.join(
                            pictures.table, uses.group, found[key], **run._asdict()
                        )
                    )
                    advance(1)
    return {key: predictions.concatenate(found) for key, found in tables.items()}


def _content(uses: Uses) -> bytes:
    """Returns a digest of who is used for what, and in which group."""
    digest = hashlib.sha256("\n".join(uses.group.tolist()).encode())
    for use, rows in uses.rows.items():
        digest.update(f"{use} {rows.tolist()}".encode())
    return digest.digest()


def _notes(workdir: Path) -> list[str]:
    """Returns what a reader of the run's figures must know."""
    path = workdir / "results.json"
    try:
        return [str(note) for note in json.loads(path.read_text("utf-8"))["notes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give the --workdir of a run or a "
            "cross-validation that has come to its end"
        ) from error


def _findings(found: Sequence[Mapping[str, Any]], num_folds: int) -> list[str]:
    """Returns what a reader of the baselines' figures must know.

    Args:
      found: as in `baselines.json`.
      num_folds: that figures are pooled over.
    """
    notes = []
    auroc = next(
        baseline["figures"]["by_image"]["auroc"]
        for baseline in found
        if baseline["key"] == "background"
    )
    if auroc["low"] is not None and auroc["low"] > 0.5:
        notes.append(
            "what lies outside the cells tells the classes apart (background only, "
            f"AUROC {assessment.interval(auroc)}): look for what files or preparation "
            "have left there"
        )
    if num_folds > 1:
        notes.append(
            "AUROC is pooled over folds, whose training images have different shares "
            "of ALL: of a baseline that knows nothing it need not be exactly 0.5"
        )
    return notes


def _shown(figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a row of the table, after its name."""
    by_image = figures["by_image"]
    return (
        assessment.interval(by_image["weighted_f1"]),
        assessment.interval(by_image["auroc"]),
        _value(by_image["balanced_accuracy"]["value"]),
        _value(figures["by_patient"]["accuracy"]["value"]),
    )


def _value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
