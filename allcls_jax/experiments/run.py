"""One run: from a configuration to the files in its workdir."""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.config import Config
from allcls_jax.data import partition_file
from allcls_jax.data.splits import Split
from allcls_jax.evaluation import metrics, plots
from allcls_jax.evaluation.predictions import join
from allcls_jax.experiments import leave_model
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.provenance import provenance
from allcls_jax.experiments.setup import (
    Setup,
    layer_rows,
    open_data,
    set_up,
    show_cells,
    show_layers,
)
from allcls_jax.experiments.training import Run, Trained, train
from allcls_jax.training import sharding


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Trains, or goes on where the workdir stopped, and evaluates the best state.

    Args:
      config: validated.
      workdir: gets `config.json`, `partition.csv`, `metrics.jsonl`, `tensorboard/`,
        `checkpoints/`, `predictions.csv`, `evaluation.json`, `results.json`, two
        plots and `model/`.

    Returns:
      The content of `results.json`, or None if a signal stopped training; then the
      same call goes on.

    Raises:
      InputError: if data, weights or the workdir cannot be used.
    """
    started = time.monotonic()
    data = open_data(config)
    config = data.config
    sharding.on_first_process(lambda: folder.check(workdir, config))
    show_cells(data)
    partition = data.partition(config)
    outputs.show_partitions([partition], data.table)
    setup = set_up(config, data)
    show_layers(config, setup.network)
    alone = [Run(config, workdir, partition)]
    found = train_and_test(alone, setup, workdir, started=started)
    if found is None:
        return None
    (results,) = found
    sharding.on_first_process(lambda: outputs.conclude(workdir, results, config))
    model = leave_model.leave(workdir, config, setup.network, data)
    terminal.say(f"{model}: for allcls predict, explain, serve, segment and export")
    return results


def train_and_test(
    runs: Sequence[Run], setup: Setup, at: Path, *, started: float | None = None
) -> list[dict[str, Any]] | None:
    """Trains and tests networks: folds of a cross-validation, or a run alone.

    Args:
      runs: of one set-up.
      setup: cells, network and inputs.
      at: the folder of all of them, or of the one.
      started: when the work for a run alone began, of `time.monotonic`; None: the time
        that a run took is that of its training.

    Returns:
      For each the content of its `results.json`, or None if a signal stopped training.
    """
    with contextlib.ExitStack() as claimed:
        for run in runs:
            claim = folder.claim(run.workdir, run.config)
            sharding.on_first_process(lambda claim=claim: claimed.enter_context(claim))
        trained = train(runs, setup, at)
        if trained is None:
            terminal.say(f"stopped; the same command with --workdir={at} goes on")
            return None
        return [
            _test(run, setup, one, started)
            for run, one in zip(runs, trained, strict=True)
        ]


def _test(
    run: Run, setup: Setup, trained: Trained, started: float | None
) -> dict[str, Any]:
    """Writes what a run predicts, and returns the content of its `results.json`."""
    config, partition, data = run.config, run.partition, setup.data
    kind = config.data.split
    assert kind is not None, "not resolved"
    group = np.full(len(data.every), "", partition.groups.group.dtype)
    group[data.rows] = partition.groups.group
    predictions = join(
        data.every,
        group,
        trained.probabilities,
        repeat=config.data.repeat,
        test_fold=config.data.test_fold,
        seed=config.seed,
    )
    tested = predictions.of(Split.TEST).image_id
    sharding.on_first_process(lambda: partition_file.verify(run.workdir, tested, kind))
    network = setup.network
    results = {
        "kind": "run",
        "data": outputs.data_record(data, config)
        | {
            "test_set": partition.test_name,
            "partition": partition.summary(data.table),
            "left_out": partition.left_out,
        },
        "views": config.evaluation.views,
        "weights": network.weights,
        "preprocessing": dataclasses.asdict(network.preprocessing),
        "parameters": network.counts,
        "layers": layer_rows(config, network),
        "best": {
            "epoch": trained.best_step // run.steps_per_epoch,
            "step": trained.best_step,
        },
        "validation": metrics.figures(predictions.of(Split.VALIDATION)),
        "test": metrics.figures(predictions.of(Split.TEST)),
        "notes": outputs.notes(data.cells, network.weights, leaky=partition.leaky)
        + outputs.split_notes(data, [partition]),
        "seconds": round(
            trained.seconds if started is None else time.monotonic() - started, 1
        ),
        "provenance": provenance(),
        "disclaimer": DISCLAIMER,
    }
    curves = plots.curves(trained.history, "; ".join(results["notes"]))
    sharding.on_first_process(
        lambda: outputs.write(run.workdir, predictions, results, curves=curves)
    )
    return results
