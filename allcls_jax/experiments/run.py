"""One run: from a configuration to the files in its workdir."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax import terminal
from allcls_jax.config import ClassWeights, Config
from allcls_jax.data import partition_file, pipeline
from allcls_jax.data.cells import ALL, HEM
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import DISCLAIMER, metrics, plots
from allcls_jax.evaluation.predictions import join
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
from allcls_jax.models.vgg import Params
from allcls_jax.training import inputs, loop, optim, sharding, state, steps
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.writers import MetricsLog, Record, write_atomically


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Trains, or goes on where the workdir stopped, and evaluates the best state.

    Args:
      config: validated.
      workdir: gets `config.json`, `partition.csv`, `metrics.jsonl`, `tensorboard/`,
        `checkpoints/`, `predictions.csv`, `evaluation.json`, `results.json` and two
        plots.

    Returns:
      The content of `results.json`, or None if a signal stopped training; then the
      same call goes on.

    Raises:
      InputError: if data, weights or the workdir cannot be used.
    """
    started = time.monotonic()
    sharding.check_batch_size(config.train.batch_size)
    data = open_data(config)
    config = data.config
    sharding.on_first_process(lambda: folder.check(workdir, config))
    show_cells(data)
    partition = data.partition(config)
    outputs.show_partitions([partition], data.table)
    setup = set_up(config, data)
    show_layers(config, setup.network)
    results = run(config, setup, workdir, started=started)
    if results is None:
        return None
    sharding.on_first_process(lambda: outputs.conclude(workdir, results, config))
    return results


def run(
    config: Config, setup: Setup, workdir: Path, *, started: float | None = None
) -> dict[str, Any] | None:
    """Trains and tests one network: a fold of a cross-validation, or a run alone.

    Args:
      config: resolved; differs from the set-up's in who tests whom at most.
      setup: cells, network and inputs.
      workdir: as in `train_and_evaluate`; `evaluation.json` is left to the caller.
      started: when the work for it began, of `time.monotonic`; None: now.

    Returns:
      The content of `results.json`, or None if a signal stopped training.
    """
    started = time.monotonic() if started is None else started
    kind = config.data.split
    assert kind is not None, "not resolved"
    data, network, given = setup.data, setup.network, setup.given
    partition = data.partition(config)
    compiled = setup.compiled(_class_weights(config, data.table.label[partition.train]))
    with contextlib.ExitStack() as claimed:
        claim = folder.claim(workdir, config)
        sharding.on_first_process(lambda: claimed.enter_context(claim))
        trained = _train(config, workdir, setup, partition, compiled)
        if trained is None:
            terminal.say(f"stopped; the same command with --workdir={workdir} goes on")
            return None
        params, best_step, history = trained

        reading = inputs.reading(config, config.train.batch_size)
        probabilities = {}
        for use in (Split.VALIDATION, Split.TEST):
            chosen = data.rows[partition.rows()[use]]
            with terminal.track(f"evaluating {use}", len(chosen), "images") as advance:
                batches = pipeline.evaluation_batches(
                    given, data.every, chosen, reading
                )
                _, probabilities[use] = loop.evaluate(
                    params, compiled, network.shardings, batches, advance
                )
        group = np.full(len(data.every), "", partition.groups.group.dtype)
        group[data.rows] = partition.groups.group
        predictions = join(
            data.every,
            group,
            probabilities,
            repeat=config.data.repeat,
            test_fold=config.data.test_fold,
            seed=config.seed,
        )
        tested = predictions.of(Split.TEST).image_id
        sharding.on_first_process(lambda: partition_file.verify(workdir, tested, kind))
        per_epoch = pipeline.steps_per_epoch(
            len(partition.train), config.train.batch_size
        )
        results = {
            "kind": "run",
            "data": outputs.data_record(data, config)
            | {
                "test_set": partition.test_name,
                "partition": partition.summary(data.table),
                "left_out": partition.left_out,
            },
            "weights": network.weights,
            "preprocessing": dataclasses.asdict(network.preprocessing),
            "parameters": network.counts,
            "layers": layer_rows(config, network),
            "best": {"epoch": best_step // per_epoch, "step": best_step},
            "validation": metrics.figures(predictions.of(Split.VALIDATION)),
            "test": metrics.figures(predictions.of(Split.TEST)),
            "notes": outputs.notes(data.cells, network.weights, leaky=partition.leaky)
            + outputs.split_notes(data, [partition]),
            "seconds": round(time.monotonic() - started, 1),
            "provenance": provenance(),
            "disclaimer": DISCLAIMER,
        }
        curves = plots.curves(history, "; ".join(results["notes"]))
        sharding.on_first_process(
            lambda: outputs.write(workdir, predictions, results, curves=curves)
        )
    return results


def _train(
    config: Config,
    workdir: Path,
    setup: Setup,
    partition: Partition,
    compiled: steps.Steps,
) -> tuple[Params, int, list[Record]] | None:
    """Trains to the end of the schedule.

    Returns:
      The best parameters, their step, and the record of each epoch; or None if a
      signal stopped it.
    """
    data, network, given = setup.data, setup.network, setup.given
    record = {
        "config": json.loads(config.to_json()),
        "data_fingerprint": data.table.fingerprint(),
        "weights": network.weights,
        "preprocessing": network.preprocessing.to_json(),
    }
    text = partition_file.to_csv(data.table, partition)
    sharding.on_first_process(
        lambda: write_atomically(workdir / partition_file.PARTITION_FILE, text)
    )
    optimizer = optim.make_optimizer(config.optim, network.mask)
    # The state is used up in training, and the network is for other runs too.
    params = jax.tree.map(jnp.copy, network.params)
    begin = network.shardings.put_replicated(state.create(params, optimizer))
    reading = inputs.reading(config, config.train.batch_size)
    training = data.rows[partition.train]
    schedule = _schedule(config, len(training))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        latest = checkpoints.restore_latest(begin)
        if latest is not None:
            _check_same_inputs(checkpoints.latest_record(), record)
            begin = latest
            terminal.say(f"going on behind step {int(begin.step)}")
        step = int(begin.step)
        first = jax.process_index() == 0
        with MetricsLog(workdir, last_step=step, enabled=first) as log:
            if len(log.history) != step // schedule.steps_per_epoch:
                raise InputError(
                    f"{workdir}: its log has {len(log.history)} epochs and its newest "
                    f"checkpoint {step // schedule.steps_per_epoch}; something was "
                    "removed: give another --workdir"
                )
            finished = loop.train(
                begin,
                compiled,
                network.shardings,
                pipeline.training_batches(
                    given,
                    data.every,
                    training,
                    reading,
                    seed=config.seed,
                    start=step,
                ),
                lambda: pipeline.evaluation_batches(
                    given, data.every, data.rows[partition.validation], reading
                ),
                schedule,
                checkpoints=checkpoints,
                record=record,
                log=log,
            )
        if not finished:
            return None
        best = checkpoints.restore_best_params(network.params)
        assert checkpoints.best_step is not None, "an epoch was finished"
        return best, checkpoints.best_step, log.history


def _check_same_inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses to go on with other cells or weights than the run began with."""
    for name, old_value, new_value in (
        ("cells (fingerprint)", old["data_fingerprint"], new["data_fingerprint"]),
        ("weights (sha256)", old["weights"]["sha256"], new["weights"]["sha256"]),
    ):
        if old_value != new_value:
            raise InputError(
                f"--workdir: its run began with other {name}: {old_value} instead of "
                f"{new_value}; give another --workdir, or the former input"
            )


def _schedule(config: Config, num_images: int) -> loop.Schedule:
    assert config.train.num_epochs is not None, "not resolved"
    return loop.Schedule(
        num_epochs=config.train.num_epochs,
        steps_per_epoch=pipeline.steps_per_epoch(num_images, config.train.batch_size),
        num_images=num_images,
    )


def _class_weights(config: Config, label: np.ndarray) -> tuple[float, float]:
    """Returns the weights of HEM and ALL in the training loss."""
    if config.train.class_weights is ClassWeights.NONE:
        return 1.0, 1.0
    hem, leukemic = (float(np.mean(label == value)) for value in (HEM, ALL))
    return 0.5 / hem, 0.5 / leukemic
