"""A run's best checkpoint on other cells, without training."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, config_files, terminal
from allcls_jax.config import Config, DataSource, ExperimentKind, SplitKind
from allcls_jax.data import partition_file, pipeline, prepare, splits
from allcls_jax.data.groups import find_groups
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import metrics
from allcls_jax.evaluation.predictions import Predictions, concatenate, join
from allcls_jax.evaluation.predictions import read as read_predictions
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.provenance import provenance
from allcls_jax.experiments.trained_network import restore
from allcls_jax.training import inputs, sharding, steps, whole
from allcls_jax.training.network import build

# A checkpoint fits only a configuration that agrees in these.
_NETWORK_FIELDS = (
    "model.name",
    "model.head",
    "data.image_size",
    "data.pack_size",
    "data.crop",
    "optim.trainable",
)


def evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on all labelled cells of a data set.

    Args:
      config: validated; its data section names the cells, its model section must be
        that of the run.
      workdir: of the run; gets a folder `evaluation-<source>-<fingerprint>` with
        `predictions.csv`, `evaluation.json`, `results.json` and a plot. The table has
        the run's validation images too: temperature and thresholds come from them.

    Returns:
      The content of `results.json`.

    Raises:
      InputError: if there is no checkpoint, it does not fit, or nothing is labelled.
    """
    started = time.monotonic()
    trained = config_files.load(workdir / folder.CONFIG_FILE)
    if trained["experiment"]["kind"] != ExperimentKind.RUN:
        raise InputError(
            f"--workdir={workdir}: holds many runs; give the folder of one of them"
        )
    wrong = config_files.differences(
        trained, dataclasses.asdict(config), only=_NETWORK_FIELDS
    )
    if wrong:
        raise InputError(
            f"{workdir}: its run was trained with another configuration "
            f"({'; '.join(wrong)}); give the same --config and overrides"
        )
    seen = partition_file.read(workdir)
    cells = inputs.open_cells(config)
    rows = splits.limit(cells.table, config.data.limit)
    table = cells.table.take(rows)
    prepare.show_counts(cells)

    network = build(config, cells.source, cache_dir=inputs.cache_dir(config))
    params, best_step, record = restore(workdir, network)
    eval_step = steps.make_eval_step(
        network.model, network.preprocessing, network.shardings
    )
    with terminal.track("evaluating", len(rows), "images") as advance:
        images = pipeline.PackedImages(cells, None, config.data.image_size)
        size = inputs.forward_batch_size(config, network)
        batches = pipeline.evaluation_batches(
            images, cells.table, rows, inputs.reading_of(config, size)
        )
        _, probability = whole.evaluate(
            params,
            eval_step,
            network.shardings,
            batches,
            advance=advance,
        )
    group = np.full(len(cells.table), "", object)
    group[rows] = find_groups(table, config.data.groups).group
    predictions = join(
        cells.table,
        group.astype(str),
        {Split.TEST: probability},
        repeat=trained["data"]["repeat"],
        test_fold=trained["data"]["test_fold"],
        seed=trained["seed"],
    )
    shared = partition_file.shared_with_training(
        seen, table, same_patients=_same_patients(trained, config, cells)
    )
    leaky = any(shared.values())
    notes = outputs.notes(cells, network.weights, leaky=leaky)
    if shared["images"]:
        notes.append(
            f"{shared['images']} of {len(table)} images were trained or validated on"
        )
    notes += _notes_on_training(trained)
    results = {
        "kind": "evaluation",
        "data": {
            "source": str(cells.source),
            "fingerprint": table.fingerprint(),
            "leaky": leaky,
            "shared_with_training": shared,
            "test_set": "all labelled images",
            "skipped": len(cells.skipped),
            "counts": {"all": table.counts()},
        },
        "run": {
            "workdir": str(workdir),
            "step": best_step,
            "source": trained["data"]["source"],
            "split": trained["data"]["split"],
            "fingerprint": record["data_fingerprint"],
        },
        "weights": network.weights,
        "parameters": network.counts,
        "test": metrics.figures(predictions),
        "notes": notes,
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(),
        "disclaimer": DISCLAIMER,
    }
    name = f"evaluation-{cells.source}-{table.fingerprint()[:8]}"
    own = _with_validation(predictions, workdir)
    sharding.on_first_process(lambda: outputs.write(workdir / name, own, results))
    sharding.on_first_process(lambda: outputs.conclude(workdir / name, results, config))
    return results


def _with_validation(predictions: Predictions, workdir: Path) -> Predictions:
    """Returns a table with the run's validation images, where they are others."""
    own = read_predictions(workdir / outputs.PREDICTIONS_FILE).of(Split.VALIDATION)
    for name in ("image_id", "patient"):
        if np.intersect1d(getattr(own, name), getattr(predictions, name)).size:
            return predictions
    return concatenate([own, predictions])


def _notes_on_training(trained: Mapping[str, Any]) -> list[str]:
    """Returns what a reader must know of the run that the checkpoint is from."""
    found = []
    if trained["data"]["source"] == DataSource.SYNTHETIC:
        found.append("trained on synthetic cells")
    if SplitKind(trained["data"]["split"]).leaky:
        found.append("trained with a split by image")
    return found


def _same_patients(
    trained: Mapping[str, Any], config: Config, cells: PackedCells
) -> bool:
    """Returns whether a patient's name means the same person here and in training.

    It does throughout C-NMC, and where the cells come from the same place.
    """
    if trained["data"]["source"] != cells.source:
        return False
    return cells.source is DataSource.CNMC or not config_files.differences(
        dict(trained),
        dataclasses.asdict(config),
        ignore=frozenset(),
        only=("data.dir", "data.synthetic"),
    )
