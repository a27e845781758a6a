"""One run: from a configuration to the files in its workdir."""

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allcls_jax import terminal
from allcls_jax.config import ClassWeights, Config
from allcls_jax.data import pipeline, prepare, splits
from allcls_jax.data.cells import ALL, HEM, CellTable
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import metrics, plots
from allcls_jax.evaluation.predictions import join
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.provenance import provenance
from allcls_jax.models.vgg import LayerRow, Params, layer_table
from allcls_jax.training import inputs, loop, optim, sharding, state, steps
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.network import Network, build
from allcls_jax.training.writers import MetricsLog, Record

_COUNTS = ("images", "patients", "ALL", "HEM")


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Trains, or goes on where the workdir stopped, and evaluates the best state.

    Args:
      config: validated.
      workdir: gets `config.json`, `partition.csv`, `metrics.jsonl`, `tensorboard/`,
        `checkpoints/`, `predictions.csv`, `results.json` and two plots.

    Returns:
      The content of `results.json`, or None if a signal stopped training; then the
      same call goes on.

    Raises:
      InputError: if data, weights or the workdir cannot be used.
    """
    started = time.monotonic()
    sharding.check_batch_size(config.train.batch_size)
    cells = inputs.open_cells(config)
    config = config.resolved(cells.source)
    sharding.on_first_process(lambda: folder.check(workdir, config))
    prepare.show_counts(cells)
    rows = splits.limit(cells.table, config.data.limit)
    table = cells.table.take(rows)
    partition = splits.partition(table, config.data, seed=config.seed)
    _show_partition(table, partition)

    network = build(config, cells.source, cache_dir=inputs.cache_dir(config))
    _show_layers(config, network)
    optimizer = optim.make_optimizer(config.optim, network.mask)
    compiled = steps.make_steps(
        network.model,
        network.preprocessing,
        optimizer,
        network.mask,
        network.shardings,
        class_weights=_class_weights(config, table.label[partition.train]),
        seed=config.seed,
    )
    given = inputs.make_inputs(config, cells, rows, network, compiled)
    with contextlib.ExitStack() as claimed:
        claim = folder.claim(workdir, config)
        sharding.on_first_process(lambda: claimed.enter_context(claim))
        trained = _train(
            config, workdir, cells, rows, partition, network, compiled, given
        )
        if trained is None:
            terminal.say(f"stopped; the same command with --workdir={workdir} goes on")
            return None
        params, best_step, history = trained

        reading = inputs.reading(config, config.train.batch_size)
        probabilities = {}
        for use in (Split.VALIDATION, Split.TEST):
            chosen = rows[partition.rows()[use]]
            with terminal.track(f"evaluating {use}", len(chosen), "images") as advance:
                batches = pipeline.evaluation_batches(
                    given, cells.table, chosen, reading
                )
                _, probabilities[use] = loop.evaluate(
                    params, compiled, network.shardings, batches, advance
                )
        predictions = join(cells.table, probabilities)
        per_epoch = pipeline.steps_per_epoch(
            len(partition.train), config.train.batch_size
        )
        results = {
            "data": {
                "source": str(cells.source),
                "fingerprint": table.fingerprint(),
                "split": str(config.data.split),
                "leaky": partition.leaky,
                "test_set": partition.test_name,
                "skipped": len(cells.skipped),
                "counts": {"all": table.counts()}
                | {
                    str(use): table.take(chosen).counts()
                    for use, chosen in partition.rows().items()
                },
            },
            "weights": network.weights,
            "parameters": network.counts,
            "best": {"epoch": best_step // per_epoch, "step": best_step},
            "validation": metrics.figures(predictions.of(Split.VALIDATION)),
            "test": metrics.figures(predictions.of(Split.TEST)),
            "notes": outputs.notes(cells, network.weights, leaky=partition.leaky),
            "seconds": round(time.monotonic() - started, 1),
            "provenance": provenance(),
            "disclaimer": plots.DISCLAIMER,
        }
        curves = plots.curves(history, "; ".join(results["notes"]))
        sharding.on_first_process(
            lambda: outputs.write(workdir, predictions, results, curves=curves)
        )
    outputs.show(results, workdir)
    return results


def _train(
    config: Config,
    workdir: Path,
    cells: PackedCells,
    rows: np.ndarray,
    partition: Partition,
    network: Network,
    compiled: steps.Steps,
    given: pipeline.Inputs,
) -> tuple[Params, int, list[Record]] | None:
    """Trains to the end of the schedule.

    Returns:
      The best parameters, their step, and the record of each epoch; or None if a
      signal stopped it.
    """
    table = cells.table.take(rows)
    record = {
        "config": json.loads(config.to_json()),
        "data_fingerprint": table.fingerprint(),
        "weights": network.weights,
        "preprocessing": network.preprocessing.to_json(),
    }
    sharding.on_first_process(
        lambda: outputs.write_partition(workdir, table, partition)
    )
    optimizer = optim.make_optimizer(config.optim, network.mask)
    begin = network.shardings.put_replicated(state.create(network.params, optimizer))
    reading = inputs.reading(config, config.train.batch_size)
    training = rows[partition.train]
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
                    cells.table,
                    training,
                    reading,
                    seed=config.seed,
                    start=step,
                ),
                lambda: pipeline.evaluation_batches(
                    given, cells.table, rows[partition.validation], reading
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


def _show_partition(table: CellTable, partition: Partition) -> None:
    rows = []
    for use, chosen in partition.rows().items():
        counts = table.take(chosen).counts()
        name = f"{use} ({partition.test_name})" if use == Split.TEST else str(use)
        rows.append((name, *(f"{counts[key]:,}" for key in _COUNTS)))
    terminal.show_table("Partition", ("", *_COUNTS), rows)
    if partition.dropped:
        terminal.say(
            f"{partition.dropped:,} images are left out: their patients are tested"
        )
    if partition.leaky:
        terminal.warn(f"the split is by image: {splits.LEAKY}; its scores flatter")


def _show_layers(config: Config, network: Network) -> None:
    """Prints the layer table of the paper, with what is frozen."""
    layers: list[LayerRow] = layer_table(network.model.layers, config.data.image_size)
    rows = [
        (
            layer.name,
            ", ".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            _moves(network.mask.get(layer.name)),
        )
        for layer in layers
    ]
    rows.append(("", "", "", ""))
    rows += [
        (name, "", f"{network.counts[name]:,}", "")
        for name in ("total", "trainable", "frozen")
    ]
    file = network.weights["file"] or "random"
    terminal.show_table(
        f"{config.model.name}, backbone weights: {file}",
        ("layer", "output", "parameters", ""),
        rows,
    )


def _moves(mask: Mapping[str, bool] | None) -> str:
    """Returns what becomes of a layer's parameters."""
    if mask is None:
        return ""
    states = {"trainable" if moves else "frozen" for moves in mask.values()}
    return " / ".join(sorted(states))
