"""Rows of a frozen stack: heads on kept features, and the whole recipe."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from allcls_jax.data import pipeline
from allcls_jax.experiments.benchmark import recipe, timing
from allcls_jax.experiments.benchmark.bench import Bench
from allcls_jax.experiments.benchmark.record import Figure, Row
from allcls_jax.experiments.benchmark.rows_forward import save_weights, stack_as_data
from allcls_jax.experiments.benchmark.workers import Unavailable, Worker
from allcls_jax.models.features import FeatureStore
from allcls_jax.models.vgg import Params
from allcls_jax.training import inputs
from allcls_jax.training.heads import Heads
from allcls_jax.training.state import TrainState

# Adam reads parameter, gradient and both moments, and writes all but the gradient.
_ADAM_MOVES = 7


def heads(bench: Bench) -> Iterator[Row]:
    """Yields an epoch of one head, and of many at once, on features on the device."""
    sizes = bench.sizes
    opened = bench.recipe(sizes.head_images)
    features = _random_features(bench, opened)
    trained = {
        number: _Epochs(
            recipe.make_heads(
                opened.network,
                features,
                opened.cells,
                opened.config,
                number=number,
                batch=sizes.batch,
            )
        )
        for number in (1, sizes.heads)
    }
    for epochs in trained.values():
        epochs()
    taken = timing.in_turns(
        {str(number): epochs.seconds for number, epochs in trained.items()},
        repeats=sizes.repeats,
    )
    one, many = (timing.figure(taken[str(n)]) for n in (1, sizes.heads))
    assert one.value is not None, "measured"
    assert many.value is not None, "measured"
    settings = f"{len(opened.rows):,} images, batch {sizes.batch}"
    yield bench.row(
        "head epoch",
        settings=settings,
        unit="s",
        ours=one,
    )
    yield bench.row(
        "heads epoch",
        settings=f"{sizes.heads} heads, {settings}",
        unit="s",
        ours=many,
    )
    yield bench.row(
        "heads ratio",
        settings=f"{sizes.heads} heads, {settings}",
        unit="",
        ours=Figure(many.value / one.value, count=many.count),
    )
    number = pipeline.steps_per_epoch(len(opened.rows), sizes.batch)
    moved = 4 * _ADAM_MOVES * opened.network.counts["trainable"] * number * sizes.heads
    rate = moved / many.value
    yield bench.row(
        "heads bandwidth",
        settings=f"{sizes.heads} heads; {rate / 1e9:.4g} of "
        f"{bench.ceilings.copy / 1e9:.4g} GB/s",
        unit="",
        ours=Figure(rate / bench.ceilings.copy, count=many.count),
    )


def whole_recipe(bench: Bench) -> Iterator[Row]:
    """Yields packed images to a trained head, against Keras' `fit`."""
    sizes = bench.sizes
    opened = bench.recipe(sizes.recipe_images)
    held = pipeline.hold(opened.images, opened.rows)
    opened = dataclasses.replace(opened, held=held)
    given = {
        "task": "recipe",
        "gpu": bench.gpu,
        "layers": stack_as_data(bench.model),
        "weights": save_weights(bench, bench.model, opened.network.params),
        "images": bench.save("recipe-images", held.images),
        "labels": bench.save("recipe-labels", opened.cells.table.label[held.rows]),
        "mean": opened.network.preprocessing.mean,
    }
    asked = {"batch": sizes.batch, "epochs": sizes.recipe_epochs}
    # Once to compile: the second time programs come from the compilation cache.
    opened.run(bench.new_folder("recipe"), **asked)
    warm = timing.figure([opened.run(bench.new_folder("recipe"), **asked)])
    keras, best = _keras_recipe(given | {"peer": "Keras"}, bench)
    settings = (
        f"{bench.model}, {len(held.rows):,} images, {sizes.recipe_epochs} epochs, "
        f"{sizes.dtype}"
    )
    yield bench.row(
        "recipe",
        settings=f"{settings}, both at batch {sizes.batch}, compiled beforehand",
        unit="s",
        ours=warm,
        peers={"Keras": keras},
        against="Keras",
    )
    if not sizes.keras_batches:
        return  # an hour's work more on a CPU
    yield bench.row(
        "recipe best",
        settings=f"{settings}, compiled beforehand",
        unit="s",
        ours=warm,
        peers={"Keras": best},
        against="Keras",
    )
    ours = {
        "task": "recipe",
        "peer": "ours",
        "recipe": bench.recipe_settings(sizes.recipe_images),
        "cache": str(bench.new_folder("recipe")),
    }
    yield bench.row(
        "recipe cold",
        settings=f"{settings}, both at batch {sizes.batch}",
        unit="s",
        ours=_cold(ours, asked),
        peers={"Keras": _cold(given | {"peer": "Keras"}, asked)},
        against="Keras",
    )


class _Epochs:
    """Epochs of heads, one at a call."""

    def __init__(self, heads: Heads):
        self._heads, self._state, self._number = heads, heads.begin(), 0

    def __call__(self) -> TrainState:
        self._state = self._heads.epoch(self._state, self._number)
        self._number += 1
        return self._state

    def seconds(self) -> float:
        return timing.seconds(self)


def _random_features(bench: Bench, opened: recipe.Recipe) -> inputs.Features:
    """Returns features drawn by chance: an epoch does not know the difference."""
    rows = opened.rows
    store = _store(bench, opened.network.params)
    found = inputs.Features(store, opened.images, rows, 1)
    keys = found.keys(rows, np.zeros(len(rows), np.int32))
    rng = np.random.default_rng(0)
    with found.store.adding() as writer:
        for begin in range(0, len(keys), 256):
            some = keys[begin : begin + 256]
            values = rng.standard_normal((len(some), *found.store.shape), np.float32)
            writer.put(some, np.maximum(values, 0).astype(found.store.dtype))
    return found


def _store(bench: Bench, params: Params) -> FeatureStore:
    width = params["dense_2"]["kernel"].shape[0]
    dtype = jnp.dtype(bench.sizes.dtype)
    return FeatureStore(bench.new_folder("features"), width, dtype)


def _keras_recipe(given: dict[str, Any], bench: Bench) -> tuple[Figure, Figure]:
    """Returns Keras at the common batch, and at its best one."""
    sizes = bench.sizes
    try:
        with Worker(given) as worker:
            best = sizes.batch
            if sizes.keras_batches:
                epochs = {
                    batch: worker.seconds(batch=batch, epochs=1)
                    for batch in (sizes.batch, *sizes.keras_batches)
                }
                best = min(epochs, key=epochs.__getitem__)
            taken = {
                batch: worker.seconds(batch=batch, epochs=sizes.recipe_epochs)
                for batch in {sizes.batch, best}
            }
    except Unavailable as reason:
        return Figure(note=str(reason)), Figure(note=str(reason))
    common, own = (
        timing.figure([taken[batch]], note=f"fit, batch {batch}")
        for batch in (sizes.batch, best)
    )
    return common, own


def _cold(settings: dict[str, Any], asked: dict[str, int]) -> Figure:
    """Returns the seconds of a process, from its start to its result."""
    begun = time.perf_counter()
    try:
        with Worker(settings) as worker:
            worker.ask(**asked, cold=True)
            return timing.figure([time.perf_counter() - begun])
    except Unavailable as reason:
        return Figure(note=str(reason))
