"""Every fold, seed and repeat of one recipe, and the pooled figures of them all.

A cross-validation is a folder of runs, `repeat0-fold1-seed0`, each whole in itself. One
that was finished is not done again; one that was stopped goes on.
"""

import contextlib
import copy
import itertools
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from allcls_jax import DISCLAIMER, terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.config import Config, ExperimentConfig, SplitKind
from allcls_jax.data import partition_file
from allcls_jax.data.cells import Part
from allcls_jax.data.splits import Partition, Split
from allcls_jax.errors import InputError
from allcls_jax.evaluation import ensemble, metrics
from allcls_jax.evaluation.predictions import Predictions, concatenate
from allcls_jax.evaluation.predictions import read as read_predictions
from allcls_jax.experiments import results as outputs
from allcls_jax.experiments import workdir as folder
from allcls_jax.experiments.provenance import provenance
from allcls_jax.experiments.run import train_and_test
from allcls_jax.experiments.setup import (
    Data,
    Setup,
    open_data,
    set_up,
    show_cells,
    show_layers,
)
from allcls_jax.experiments.training import CHECKPOINTS, Run
from allcls_jax.training import placement, sharding
from allcls_jax.training.checkpoint import Checkpoints

_NAMES = {
    SplitKind.HELD_OUT: "preliminary part",
    SplitKind.OFFICIAL: "official folds",
    SplitKind.GROUPED: "grouped folds",
    SplitKind.IMAGE: "random folds of the images",
    SplitKind.IMAGE_COPIES: "random folds of the images and their copies",
}


def cross_validate(config: Config, workdir: Path) -> bool:
    """Trains and tests every fold and seed, and pools what they predict.

    Args:
      config: validated; `data.test_fold` is not read, `seed` and `data.repeat` are the
        first of theirs.
      workdir: gets a folder for each run, and of all of them `predictions.csv`,
        `evaluation.json`, `results.json` and a plot.

    Returns:
      Whether it came to its end; if not, a signal stopped it and the same call goes on.

    Raises:
      InputError: if data, weights or the workdir cannot be used.
    """
    started = time.monotonic()
    data = open_data(config)
    config = data.config
    sharding.on_first_process(lambda: folder.check(workdir, config))
    show_cells(data)
    with contextlib.ExitStack() as claimed:
        claim = folder.claim(workdir, config)
        sharding.on_first_process(lambda: claimed.enter_context(claim))
        plan = list(_plan(config, data))
        _show_folds(plan, data)
        partitions = _train_all(plan, data, workdir)
        if partitions is None:
            terminal.say(f"stopped; the same command with --workdir={workdir} goes on")
            return False
        sharding.on_first_process(
            lambda: _pool(config, data, workdir, plan, partitions, started)
        )
    return True


def run_name(config: Config) -> str:
    """Returns the folder of a run within its cross-validation."""
    data = config.data
    return f"repeat{data.repeat}-fold{data.test_fold}-seed{config.seed}"


def _plan(config: Config, data: Data) -> Iterator[Config]:
    """Yields the configuration of each run, those that share a set-up in a row."""
    kind, num_repeats = config.data.split, config.experiment.num_repeats
    if kind in (SplitKind.OFFICIAL, SplitKind.HELD_OUT) and num_repeats > 1:
        raise InputError(
            f"experiment.num_repeats = {num_repeats}: the split "
            f"{str(kind)!r} is given and not drawn; set it to 1, or data.split = "
            "'grouped'"
        )
    folds = list(range(config.data.num_folds))
    if kind is SplitKind.HELD_OUT:
        folds = [config.data.test_fold]
    elif kind is SplitKind.OFFICIAL:
        known = data.table.fold[data.table.part == Part.TRAIN]
        folds = np.unique(known).tolist()
    for repeat in range(num_repeats):
        for seed in range(config.experiment.num_seeds):
            for fold in folds:
                child = copy.deepcopy(config)
                child.experiment = ExperimentConfig()
                child.seed += seed
                child.data.repeat += repeat
                child.data.test_fold = fold
                yield child


def _show_folds(plan: Sequence[Config], data: Data) -> None:
    """Prints the partitions of the first drawing and seed."""
    folds = len({config.data.test_fold for config in plan})
    first = [data.partition(config) for config in plan[:folds]]
    outputs.show_partitions(first, data.table)


def _train_all(
    plan: Sequence[Config], data: Data, workdir: Path
) -> list[Partition] | None:
    """Does what is not done yet; returns each run's partition, None if stopped."""
    runs: list[Run] = []
    # Where turned copies are made, each repeat makes others.
    copied = data.copies is not None
    shown = False
    for _, group in itertools.groupby(plan, lambda config: config.data.repeat * copied):
        configs = list(group)
        if copied and configs[0].data.repeat != data.config.data.repeat:
            data = open_data(configs[0])
        here = [
            Run(config, workdir / run_name(config), data.partition(config))
            for config in configs
        ]
        runs += here
        todo = [run for run in here if not _finished(run.workdir, run.config)]
        if len(todo) < len(here):
            terminal.say(f"{len(here) - len(todo)} of {len(here)} runs were finished")
        if not todo:
            continue
        setup = set_up(data.config, data)
        if not shown:
            show_layers(setup.config, setup.network)
            shown = True
        for together in _together(todo, here, setup, workdir):
            names = ", ".join(run.workdir.name for run in together)
            terminal.say(f"training {len(together)} of {len(plan)} runs: {names}")
            results = train_and_test(together, setup, workdir)
            if results is None:
                return None
            for run, found in zip(together, results, strict=True):
                terminal.say(f"{run.workdir.name}: {outputs.in_one_line(found)}")
            sharding.on_first_process(
                lambda: shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)
            )
    return [run.partition for run in runs]


def _together(
    todo: Sequence[Run], every: Sequence[Run], setup: Setup, workdir: Path
) -> Iterator[list[Run]]:
    """Yields the runs that are trained side by side: all, if the memory allows it."""
    todo = list(todo)
    # Convolutions with kernels of their own are no faster side by side.
    if setup.features is None or setup.network.learns_stack:
        yield from ([run] for run in todo)
        return
    if (workdir / CHECKPOINTS).exists():
        # Those that were under way go on together, also if some had come to their end.
        with Checkpoints(workdir / CHECKPOINTS, read_only=True) as kept:
            names = kept.record()["runs"] if kept.latest_step is not None else []
        if begun := [run for run in every if run.workdir.name in names]:
            yield begun
            todo = [run for run in todo if run not in begun]
    # Parameters, two moments of them, the best, and their mean, in float32.
    copies = 4 + bool(setup.config.optim.ema)
    size = placement.heads_at_once(4 * copies * setup.network.counts["trainable"])
    parts = math.ceil(len(todo) / size)
    for number in range(parts):
        yield todo[number::parts]


def _finished(workdir: Path, config: Config) -> bool:
    """Returns whether a folder holds the finished run of a configuration."""
    if not (workdir / outputs.RESULTS_FILE).exists():
        return False
    folder.check(workdir, config)
    return True


def _pool(
    config: Config,
    data: Data,
    workdir: Path,
    plan: Sequence[Config],
    partitions: Sequence[Partition],
    started: float,
) -> None:
    """Reads what the runs predicted, and writes and shows the figures of all."""
    kind = config.data.split
    assert kind is not None, "not resolved"
    tables: list[Predictions] = []
    runs: list[dict[str, Any]] = []
    summaries: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    for child, partition in zip(plan, partitions, strict=True):
        name = run_name(child)
        table = read_predictions(workdir / name / outputs.PREDICTIONS_FILE)
        tested = table.of(Split.TEST).image_id
        partition_file.verify(workdir / name, tested, kind)
        tables.append(table)
        path = workdir / name / outputs.RESULTS_FILE
        last = json.loads(path.read_text(encoding="utf-8"))
        runs.append(
            {
                "folder": name,
                "repeat": child.data.repeat,
                "test_fold": child.data.test_fold,
                "seed": child.seed,
                "test_set": partition.test_name,
                "best": last["best"],
                "seconds": last["seconds"],
            }
        )
        rows = partition.summary(data.table)
        summaries += [{"run": name} | row for row in rows]
    pooled = concatenate(tables)
    _, one_pass = next(iter(pooled.passes()))
    results = {
        "kind": "cross_validation",
        "data": outputs.data_record(data, config)
        | {
            "test_set": _NAMES[kind],
            "partition": summaries,
            "left_out": partitions[0].left_out,
        },
        "views": config.evaluation.views,
        "weights": last["weights"],
        "preprocessing": last["preprocessing"],
        "parameters": last["parameters"],
        "layers": last["layers"],
        "runs": runs,
        "test": metrics.figures(one_pass.of(Split.TEST)),
        "notes": outputs.notes(data.cells, last["weights"], leaky=kind.leaky)
        + outputs.split_notes(data, partitions),
        "seconds": round(time.monotonic() - started, 1),
        "provenance": provenance(),
        "disclaimer": DISCLAIMER,
    }
    together = ensemble.of_seeds(pooled)
    if together is not None:
        tested = next(iter(together.mean.of(Split.TEST).passes()))[1]
        of_test = together.mean.split == Split.TEST
        results["ensemble"] = {
            "members": together.members,
            "test": metrics.figures(tested),
            "mean_spread": float(np.mean(together.spread[of_test])),
        }
        write_atomically(workdir / outputs.ENSEMBLE_FILE, together.to_csv())
    outputs.write(workdir, pooled, results)
    outputs.conclude(workdir, results, config)
