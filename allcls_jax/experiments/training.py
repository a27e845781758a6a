"""Runs trained together or one after the other: from a set-up to predictions.

Behind a frozen backbone whose features are kept, the heads of all runs are trained side
by side; otherwise each run trains the whole network.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax import terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.config import ClassWeights, Config, HeadKind
from allcls_jax.data import partition_file, pipeline
from allcls_jax.data.cells import ALL, HEM
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError
from allcls_jax.experiments.setup import Setup
from allcls_jax.models import parts, vgg
from allcls_jax.training import (
    inputs,
    loop,
    optim,
    placement,
    sharding,
    state,
    steps,
    whole,
)
from allcls_jax.training.checkpoint import Checkpoints
from allcls_jax.training.heads import Head, Heads
from allcls_jax.training.writers import MetricsLog, Record

CHECKPOINTS = "checkpoints"

# Training images of whose features mean and deviation are taken before fine-tuning.
_STANDARDISED = 1024

Probabilities = dict[str, dict[int, float]]  # P(ALL) by row of the table of cells


@dataclasses.dataclass(frozen=True)
class Run:
    """One network that is to be trained and tested.

    Attributes:
      config: resolved.
      workdir: of the run.
      partition: who is trained, validated and tested.
    """

    config: Config
    workdir: Path
    partition: Partition

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        assert self.config.train.batch_size is not None, "not resolved"
        return self.config.train.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every training image once."""
        return pipeline.steps_per_epoch(len(self.partition.train), self.batch_size)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training has left of a run.

    Attributes:
      best_step: the number of steps done at the end of the best epoch.
      history: the record of each epoch.
      probabilities: of the best parameters, of validation and test images.
      seconds: that it took; of runs trained together each has its share.
    """

    best_step: int
    history: list[Record]
    probabilities: Probabilities
    seconds: float


def train(runs: Sequence[Run], setup: Setup, at: Path) -> list[Trained] | None:
    """Trains runs, or goes on where they stopped.

    Args:
      runs: of one set-up, in folders that are claimed.
      setup: cells, network, inputs.
      at: the folder of all of them, where heads that are trained together leave their
        checkpoints meanwhile.

    Returns:
      What became of each; None if a signal stopped it, with the state saved.

    Raises:
      InputError: if a loss is not finite, or a folder cannot be gone on with.
    """
    for run in runs:
        text = partition_file.to_csv(setup.data.table, run.partition)
        sharding.on_first_process(
            lambda run=run, text=text: write_atomically(
                run.workdir / partition_file.PARTITION_FILE, text
            )
        )
    if setup.features is not None:
        return _train_heads(runs, setup, setup.features, at)
    config, data = setup.config, setup.data
    network = setup.network
    images, resident = inputs.place_images(config, setup.images, data.rows, network)
    # Compiled once for all.
    compiled = steps.make_steps(
        network.model,
        network.preprocessing,
        config.optim,
        network.shares,
        network.shardings,
        augment=config.augment,
        train=config.train,
        views=config.evaluation.views,
    )
    found = []
    for run in runs:
        trained = _train_whole(run, setup, compiled, images, resident)
        if trained is None:
            return None
        found.append(trained)
    return found


def _train_heads(
    runs: Sequence[Run], setup: Setup, features: inputs.Features, at: Path
) -> list[Trained] | None:
    started = time.monotonic()
    data, network, config = setup.data, setup.network, setup.config
    place = placement.choose(config.train.keep, features.num_bytes, "features")
    heads = Heads(
        network,
        config.optim,
        [
            Head(
                order=_order(run, setup),
                validation=data.rows[run.partition.validation],
                params=_learning(run, setup, features),
                class_weights=_class_weights(
                    run.config, data.table.label[run.partition.train]
                ),
                learning_rate=run.config.optim.learning_rate,
                weight_decay=run.config.optim.weight_decay,
                dropout=run.config.model.dropout,
                seed=run.config.seed,
            )
            for run in runs
        ],
        features,
        data.every,
        train=config.train,
        place=place,
    )
    longest = max(run.steps_per_epoch for run in runs)
    images = sum(len(run.partition.train) for run in runs)
    schedule = _schedule(config, longest, images)
    # A run alone has its folder for itself.
    together = [run.workdir.name for run in runs if run.workdir != at]
    record = _record(setup) | {"runs": together}
    with contextlib.ExitStack() as opened:
        kept = opened.enter_context(Checkpoints(at / CHECKPOINTS))
        begin = heads.begin()
        done, begin = _restored(kept, begin, record, longest)
        logs = []
        # A head that has stopped early has done fewer epochs than others.
        for run, step in zip(runs, heads.per_head(begin.step), strict=True):
            log = opened.enter_context(_log(run, int(step)))
            _check_log(run, log, int(step) // run.steps_per_epoch)
            logs.append(log)
        saver = loop.Saver(kept, logs, record, schedule)
        end = loop.train_heads(
            heads,
            begin,
            schedule,
            first_epoch=done // longest,
            logs=logs,
            saver=saver,
        )
        if end is None:
            return None
        kept.wait()
        params = optim.merge(end.params, end.best.params)
        uses = (Split.VALIDATION, Split.TEST)
        found = {
            use: heads.probabilities(
                params,
                [data.rows[run.partition.rows()[use]] for run in runs],
                config.evaluation.views,
            )
            for use in uses
        }
        best_steps = [int(step) for step in heads.per_head(end.best.step)]
        last_steps = [int(step) for step in heads.per_head(end.step)]
        seconds = (time.monotonic() - started) / len(runs)
        for number, run in enumerate(runs):
            if run.workdir != at:
                alone = record | {"runs": [], "steps": last_steps[number]}
                with Checkpoints(run.workdir / CHECKPOINTS) as own:
                    own.save(last_steps[number], heads.of_head(end, number), alone)
        return [
            Trained(
                best_steps[i],
                log.history,
                {use: found[use][i] for use in uses},
                seconds,
            )
            for i, log in enumerate(logs)
        ]


def _learning(run: Run, setup: Setup, features: inputs.Features) -> vgg.Params:
    """Returns what a run begins with behind its kept features."""
    params = setup.network.learning_params(run.config.seed)
    if run.config.model.head is not HeadKind.BLOCKS:
        return params
    rows = setup.data.rows[run.partition.train]
    return parts.standardised(params, features.read(rows))


def _train_whole(
    run: Run,
    setup: Setup,
    compiled: steps.Steps,
    images: pipeline.Images,
    resident: jax.Array | None,
) -> Trained | None:
    started = time.monotonic()
    data, network, config = setup.data, setup.network, run.config
    optimizer = optim.make_optimizer(config.optim, network.shares)
    schedule = _schedule(config, run.steps_per_epoch, len(run.partition.train))
    size = inputs.forward_batch_size(config, network)
    trainer = whole.Whole(
        steps=compiled,
        shardings=network.shardings,
        images=images,
        resident=resident,
        table=data.every,
        order=_order(run, setup),
        validation=data.rows[run.partition.validation],
        settings=steps.RunSettings(
            np.uint32(config.seed),
            np.array(
                _class_weights(config, data.table.label[run.partition.train]),
                np.float32,
            ),
            np.float32(schedule.steps_per_epoch),
            np.float32(schedule.num_epochs * schedule.steps_per_epoch),
        ),
        training=inputs.reading_of(config, run.batch_size),
        evaluating=inputs.reading_of(config, size),
    )
    # Copied, for the state is used up in training, and the network is for other runs.
    own = optim.merge(network.params, network.seeded(config.seed))
    if config.model.head is HeadKind.BLOCKS:
        rows = data.rows[run.partition.train]
        some = rows[:: -(-len(rows) // _STANDARDISED)]
        own = parts.standardised(
            own, inputs.features_of(config, images, data.every, some, network, own)
        )
    own = jax.tree.map(jnp.copy, own)
    begun = state.create(own, optimizer, network.mask, averaged=bool(config.optim.ema))
    begin = network.shardings.put_replicated(begun)

    def saved(now: state.TrainState) -> state.TrainState:
        """Frozen parameters are those of the weights."""
        return now.replace(params=optim.trainable(now.params, network.mask))

    record = _record(setup) | {"runs": []}
    with Checkpoints(run.workdir / CHECKPOINTS) as kept:
        done, restored = _restored(kept, saved(begin), record, run.steps_per_epoch)
        begin = restored.replace(params=optim.merge(begin.params, restored.params))
        with _log(run, done) as log:
            _check_log(run, log, done // run.steps_per_epoch)
            end = loop.train_whole(
                trainer,
                begin,
                schedule,
                log=log,
                saver=loop.Saver(kept, [log], record, schedule),
                saved=saved,
            )
        if end is None:
            return None
        kept.wait()
    params = optim.merge(end.params, end.best.params)
    found: Probabilities = {}
    for use in (Split.VALIDATION, Split.TEST):
        rows = data.rows[run.partition.rows()[use]]
        with terminal.track(f"evaluating {use}", len(rows), "images") as advance:
            _, found[use] = trainer.evaluate(params, rows, advance, final=True)
    seconds = time.monotonic() - started
    return Trained(int(end.best.step), log.history, found, seconds)


def _restored(
    kept: Checkpoints,
    begin: state.TrainState,
    record: Mapping[str, Any],
    steps_per_epoch: int,
) -> tuple[int, state.TrainState]:
    """Returns the number of steps done, and the state behind them."""
    done = kept.latest_step
    if done is None:
        return 0, begin
    check_same_inputs(kept.record(), record)
    latest = kept.restore(begin)
    assert latest is not None, "there is one"
    within = (
        "" if done % steps_per_epoch == 0 else f" and {done % steps_per_epoch} steps"
    )
    terminal.say(
        f"going on behind step {done} ({done // steps_per_epoch} epochs{within})"
    )
    return done, latest


def check_same_inputs(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses to go on with other cells or weights than a run began with."""
    for name, old_value, new_value in (
        ("cells (fingerprint)", old["data_fingerprint"], new["data_fingerprint"]),
        ("weights (sha256)", old["weights"]["sha256"], new["weights"]["sha256"]),
        ("runs", old["runs"], new["runs"]),
    ):
        if old_value != new_value:
            raise InputError(
                f"--workdir: its run began with other {name}: {old_value} instead of "
                f"{new_value}; give another --workdir, or the former input"
            )


def _record(setup: Setup) -> dict[str, Any]:
    """Returns what is saved with each state."""
    return {
        "config": json.loads(setup.config.to_json()),
        "data_fingerprint": setup.data.table.fingerprint(),
        "weights": setup.network.weights,
        "preprocessing": setup.network.preprocessing.to_json(),
    }


def _log(run: Run, last_step: int) -> MetricsLog:
    first = jax.process_index() == 0
    return MetricsLog(run.workdir, last_step=last_step, enabled=first)


def _check_log(run: Run, log: MetricsLog, epochs: int) -> None:
    if len(log.history) != epochs:
        raise InputError(
            f"{run.workdir}: its log has {len(log.history)} epochs and its newest "
            f"checkpoint {epochs}; something was removed: give another --workdir"
        )


def _order(run: Run, setup: Setup) -> pipeline.Order:
    config = run.config
    table = setup.data.table.take(run.partition.train)
    return pipeline.Order(
        setup.data.rows[run.partition.train],
        config.seed,
        dihedral=config.augment.dihedral,
        chances=pipeline.sampling_chances(config.train, table.label, table.patient),
    )


def _schedule(config: Config, steps_per_epoch: int, num_images: int) -> loop.Schedule:
    assert config.train.num_epochs is not None, "not resolved"
    return loop.Schedule(
        num_epochs=config.train.num_epochs,
        steps_per_epoch=steps_per_epoch,
        num_images=num_images,
        checkpoint_seconds=config.train.checkpoint_seconds,
        patience=config.train.patience,
    )


def _class_weights(config: Config, label: np.ndarray) -> tuple[float, float]:
    """Returns the weights of HEM and ALL in the training loss."""
    if config.train.class_weights is ClassWeights.NONE:
        return 1.0, 1.0
    hem, leukemic = (float(np.mean(label == value)) for value in (HEM, ALL))
    return 0.5 / hem, 0.5 / leukemic
