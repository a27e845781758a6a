"""Best checkpoints on other cells, without training: a run's, or those of many runs.

Of a cross-validation every network sees every cell, and what they say together is told
beside what they say alone, with what that costs.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, config_files, terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.config import Config, DataSource, SplitKind
from allcls_jax.data import left_out, partition_file, prepare, splits
from allcls_jax.data.groups import find_groups
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import Split
from allcls_jax.evaluation import ensemble, metrics
from allcls_jax.evaluation.predictions import Predictions, concatenate, join
from allcls_jax.evaluation.predictions import read as read_predictions
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments.members import Forward, Member, members_of
from allcls_jax.experiments.provenance import provenance
from allcls_jax.experiments.trained_network import restore
from allcls_jax.training import inputs, sharding
from allcls_jax.training.network import build


def evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on all labelled cells of a data set.

    Args:
      config: validated; its data section names the cells, its model section must be
        that of the run.
      workdir: of the run; gets a folder `evaluation-<source>-<fingerprint>` with
        `predictions.csv`, `evaluation.json`, `results.json` and a plot. The table has
        the run's validation images too: temperature and thresholds come from them. Of
        a cross-validation every finished run is evaluated; the folder, in that of the
        cross-validation, has `ensemble.csv` besides.

    Returns:
      The content of `results.json`.

    Raises:
      InputError: if there is no checkpoint, it does not fit, or nothing is labelled.
    """
    started = time.monotonic()
    members = list(members_of(config, workdir))
    trained, views = members[0].trained, members[0].views
    if views != config.evaluation.views:
        terminal.say(
            f"evaluation.views = {config.evaluation.views} is not used: what was "
            f"trained was calibrated with {views}, and is evaluated with {views}"
        )
    partitions = [partition_file.read(member.folder) for member in members]
    cells = inputs.open_cells(config)
    absent = left_out.read(config.data.without)
    rows = absent.rest(cells.table, splits.limit(cells.table, config.data.limit))
    table = cells.table.take(rows)
    prepare.show_counts(cells)

    network = build(config, cells.source, cache_dir=inputs.cache_dir(config))
    forward = Forward(config, cells, rows, network, views, many=len(members) > 1)
    group = np.full(len(cells.table), "", object)
    group[rows] = find_groups(table, config.data.groups, absent=absent.patients).group
    tables: list[Predictions] = []
    best_steps: list[int] = []
    record: dict[str, Any] = {}
    one_pass: float | None = None
    with terminal.track("evaluating", len(rows) * len(members), "images") as advance:
        for member in members:
            params, best_step, record = restore(member.folder, network)
            if len(members) > 1 and one_pass is None:
                one_pass = forward.images_per_second_of_one_pass(params)
            tables.append(
                join(
                    cells.table,
                    group.astype(str),
                    {Split.TEST: forward.probabilities(params, advance)},
                    **member.name,
                )
            )
            best_steps.append(best_step)
    same_patients = _same_patients(trained, config, cells)

    def shared_with(seen: Sequence[Mapping[str, str]]) -> dict[str, int]:
        return partition_file.shared_with_training(
            seen, table, same_patients=same_patients
        )

    shared = shared_with([row for seen in partitions for row in seen])
    leaky = any(shared.values())
    notes = outputs.notes(cells, network.weights, leaky=leaky)
    if shared["images"]:
        by = f" by one or more of {len(members)} networks" if len(members) > 1 else ""
        notes.append(
            f"{shared['images']} of {len(table)} images were trained or validated on"
            + by
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
            "step": best_steps[0] if len(members) == 1 else None,
            "source": trained["data"]["source"],
            "split": trained["data"]["split"],
            "fingerprint": record["data_fingerprint"],
        },
        "views": views,
        "weights": network.weights,
        "parameters": network.counts,
        "test": metrics.figures(tables[0]),
        "notes": notes,
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(),
        "disclaimer": DISCLAIMER,
    }
    own = concatenate([*map(_with_validation, tables, members)])
    out = workdir / f"evaluation-{cells.source}-{table.fingerprint()[:8]}"
    together = ensemble.of_runs(own)
    if together is not None:
        assert one_pass is not None, "measured for several"
        results["runs"] = [
            {"folder": member.folder.name, **member.name, "step": step}
            | {"test": metrics.figures(one), "shared_with_training": shared_with(seen)}
            for member, step, one, seen in zip(
                members, best_steps, tables, partitions, strict=True
            )
        ]
        results["ensemble"] = {
            "members": together.members,
            "test": metrics.figures(together.mean),
            "mean_spread": float(np.mean(together.spread)),
            "cost": forward.cost(len(members), one_pass),
        }

    def write() -> None:
        if together is not None:
            out.mkdir(exist_ok=True)
            write_atomically(out / outputs.ENSEMBLE_FILE, together.to_csv())
        outputs.write(out, own, results)

    sharding.on_first_process(write)
    sharding.on_first_process(lambda: outputs.conclude(out, results, config))
    return results


def _with_validation(predictions: Predictions, member: Member) -> Predictions:
    """Returns a table with the run's validation images, where they are others."""
    own = read_predictions(member.folder / outputs.PREDICTIONS_FILE)
    own = own.of(Split.VALIDATION)
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
