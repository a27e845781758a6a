"""One run: from a configuration to the files in its workdir."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from allcls_jax import config_fields, terminal
from allcls_jax.config import ClassWeights, Config
from allcls_jax.data import pipeline, prepare, splits
from allcls_jax.data.cells import ALL, HEM, CellTable
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import metrics, plots
from allcls_jax.evaluation.predictions import Predictions
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments.provenance import provenance
from allcls_jax.models.vgg import LayerRow, Params, layer_table
from allcls_jax.paths import default_cache_dir
from allcls_jax.training import inputs, loop, optim, sharding, state, steps
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.network import Network, build
from allcls_jax.training.writers import MetricsLog, write_atomically

# A checkpoint fits only a configuration that agrees in these.
_COUNTS = ("images", "patients", "ALL", "HEM")

_NETWORK_FIELDS = ("model.name", "model.head", "data.image_size", "data.crop")


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
    first = jax.process_index() == 0
    sharding.check_batch_size(config.train.batch_size)
    cells = _open_cells(config)
    config = config.resolved(cells.source)
    _claim(workdir, config)
    if first:
        prepare.show_counts(cells)
    rows = splits.limit(cells.table, config.data.limit)
    table = cells.table.take(rows)
    partition = splits.partition(table, config.data, seed=config.seed)
    if first:
        _show_partition(table, partition)

    network = build(config, cells.source, cache_dir=_cache_dir(config))
    if first:
        _show_layers(config, network)
    record = {
        "config": json.loads(config.to_json()),
        "data_fingerprint": table.fingerprint(),
        "weights": network.weights,
        "preprocessing": network.preprocessing.to_json(),
    }
    if first:
        outputs.write_partition(workdir, table, partition)

    shards = network.shardings
    optimizer = optim.make_optimizer(config.optim, network.mask)
    compiled = steps.make_steps(
        network.model,
        network.preprocessing,
        optimizer,
        network.mask,
        shards,
        class_weights=_class_weights(config, table.label[partition.train]),
        seed=config.seed,
    )
    fresh = shards.put_replicated(state.create(network.params, optimizer))
    reading = inputs.reading(config, config.train.batch_size)
    given = inputs.make_inputs(
        config, cells, rows, network, compiled, cache_dir=_cache_dir(config)
    )

    def predict(params: Params, use: Split) -> dict[int, float]:
        chosen = rows[partition.rows()[use]]
        with terminal.track(f"evaluating {use}", len(chosen), "images") as advance:
            batches = pipeline.evaluation_batches(given, cells.table, chosen, reading)
            return loop.evaluate(params, compiled, shards, batches, advance)[1]

    with Checkpoints(workdir / "checkpoints") as checkpoints:
        begin = checkpoints.restore_latest(fresh)
        if begin is None:
            begin = fresh
        else:
            _check_same_inputs(checkpoints.record(), record)
            terminal.say(f"going on behind step {int(begin.step)}")
        training_rows = rows[partition.train]
        with MetricsLog(workdir, last_step=int(begin.step), enabled=first) as log:
            finished = loop.train(
                begin,
                compiled,
                shards,
                pipeline.training_batches(
                    given,
                    cells.table,
                    training_rows,
                    reading,
                    seed=config.seed,
                    start=int(begin.step),
                ),
                lambda: pipeline.evaluation_batches(
                    given, cells.table, rows[partition.validation], reading
                ),
                _schedule(config, len(training_rows)),
                checkpoints=checkpoints,
                record=record,
                log=log,
            )
        if not finished:
            terminal.say(f"stopped; the same command with --workdir={workdir} goes on")
            return None
        best = checkpoints.restore_best_params(network.params)
        best_step = checkpoints.best_step

    probabilities = {use: predict(best, use) for use in (Split.VALIDATION, Split.TEST)}
    predictions = _join(cells, probabilities)
    per_epoch = pipeline.steps_per_epoch(len(training_rows), config.train.batch_size)
    results = {
        "data": {
            "source": str(cells.source),
            "fingerprint": record["data_fingerprint"],
            "split": str(config.data.split),
            "leaky": partition.leaky,
            "test_set": partition.test_name,
            "counts": {"all": table.counts()}
            | {
                str(use): table.take(chosen).counts()
                for use, chosen in partition.rows().items()
            },
        },
        "weights": network.weights,
        "parameters": network.counts,
        "best": {"epoch": (best_step or 0) // per_epoch, "step": best_step},
        "validation": metrics.figures(predictions.of(Split.VALIDATION)),
        "test": metrics.figures(predictions.of(Split.TEST)),
        "notes": outputs.notes(cells.source, network.weights, partition),
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(),
        "disclaimer": plots.DISCLAIMER,
    }
    if first:
        outputs.write(workdir, predictions, results)
        note = "; ".join(results["notes"])
        plots.save(workdir / "curves.png", plots.curves(log.history, note))
        outputs.show(results, workdir)
    sharding.wait_for_all("results written")
    return results


def evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on all labelled cells of a data set.

    Args:
      config: validated; its data section names the cells, its model section must be
        that of the run.
      workdir: of the run; gets a folder `evaluation-<source>-<fingerprint>` with
        `predictions.csv`, `results.json` and a plot.

    Returns:
      The content of `results.json`.

    Raises:
      InputError: if there is no checkpoint, it does not fit, or nothing is labelled.
    """
    started = time.monotonic()
    first = jax.process_index() == 0
    trained = config_fields.load(workdir / "config.json")
    wrong = config_fields.differences(
        trained, dataclasses.asdict(config), only=_NETWORK_FIELDS
    )
    if wrong:
        raise InputError(
            f"{workdir}: its run was trained with another configuration "
            f"({'; '.join(wrong)}); give the same --config and overrides"
        )
    sharding.check_batch_size(config.train.batch_size)
    cells = _open_cells(config)
    rows = splits.limit(cells.table, config.data.limit)
    if not len(rows):
        raise InputError(f"data.dir = {config.data.dir!r}: no labelled image")
    table = cells.table.take(rows)
    if first:
        prepare.show_counts(cells)

    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        record = checkpoints.record()
        network = build(
            config, cells.source, cache_dir=_cache_dir(config), record=record
        )
        params = checkpoints.restore_best_params(network.params)
        best_step = checkpoints.best_step
    compiled = steps.make_steps(
        network.model,
        network.preprocessing,
        optim.make_optimizer(config.optim, network.mask),
        network.mask,
        network.shardings,
        class_weights=(1.0, 1.0),
        seed=config.seed,
    )
    with terminal.track("evaluating", len(rows), "images") as advance:
        images = pipeline.Images(cells, config.data.image_size)
        reading = inputs.reading(config, config.train.batch_size)
        batches = pipeline.evaluation_batches(images, cells.table, rows, reading)
        _, probability = loop.evaluate(
            params, compiled, network.shardings, batches, advance
        )
    predictions = _join(cells, {Split.TEST: probability})
    shared = outputs.trained_on(workdir, table)
    notes = outputs.notes(cells.source, network.weights, None)
    if shared:
        notes.append(f"leaky: {shared} of {len(table)} images were trained on")
    results = {
        "data": {
            "source": str(cells.source),
            "fingerprint": table.fingerprint(),
            "leaky": bool(shared),
            "test_set": "all labelled images",
            "counts": {"all": table.counts()},
        },
        "run": {"workdir": str(workdir), "step": best_step},
        "weights": network.weights,
        "parameters": network.counts,
        "test": metrics.figures(predictions),
        "notes": notes,
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(),
        "disclaimer": plots.DISCLAIMER,
    }
    if first:
        name = f"evaluation-{cells.source}-{table.fingerprint()[:8]}"
        folder = workdir / name
        folder.mkdir(exist_ok=True)
        outputs.write(folder, predictions, results)
        outputs.show(results, folder)
    sharding.wait_for_all("results written")
    return results


def _cache_dir(config: Config) -> Path:
    given = config.cache_dir
    return Path(given).expanduser() if given else default_cache_dir()


def _open_cells(config: Config) -> PackedCells:
    """Opens the cells; the first process packs them, the others wait for it."""

    def open_them() -> PackedCells:
        return prepare.open_cells(
            config.data, pack_size=config.pack_size, cache_dir=_cache_dir(config)
        )

    if jax.process_index() == 0:
        cells = open_them()
        sharding.wait_for_all("cells packed")
        return cells
    sharding.wait_for_all("cells packed")
    return open_them()


def _claim(workdir: Path, config: Config) -> None:
    """Makes the workdir this run's, or makes sure that it is."""
    path = workdir / "config.json"
    if path.exists():
        changed = config_fields.differences(
            config_fields.load(path), dataclasses.asdict(config)
        )
        if changed:
            lines = "\n".join(f"  - {line}" for line in changed)
            raise InputError(
                f"--workdir={workdir} holds a run of another configuration:\n{lines}\n"
                "Give another --workdir, or the configuration of that run."
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise InputError(
            f"--workdir={workdir}: holds something that is no run; name a new folder"
        )
    sharding.wait_for_all("workdir looked at")
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomically(path, config.to_json())
        except OSError as error:
            raise InputError(
                f"--workdir={workdir}: cannot be written ({error})"
            ) from error
    sharding.wait_for_all("workdir made")


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


def _join(
    cells: PackedCells, probabilities: Mapping[Split, Mapping[int, float]]
) -> Predictions:
    """Returns the table of predictions, split by split, in the cells' order."""
    keys = [(use, row) for use, p in probabilities.items() for row in sorted(p)]
    return Predictions(
        cells.table.take(np.array([row for _, row in keys])),
        np.array([probabilities[use][row] for use, row in keys]),
        np.array([str(use) for use, _ in keys]),
    )


def _show_partition(table: CellTable, partition: Partition) -> None:
    rows = []
    for use, chosen in partition.rows().items():
        counts = table.take(chosen).counts()
        name = f"{use} ({partition.test_name})" if use == Split.TEST else str(use)
        rows.append((name, *(f"{counts[key]:,}" for key in _COUNTS)))
    terminal.show_table("Partition", ("", *_COUNTS), rows)
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
