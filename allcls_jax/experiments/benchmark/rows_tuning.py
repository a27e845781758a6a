"""Rows of fine-tuning: all parameters are trained on images that vary."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.config import AugmentConfig
from allcls_jax.data import pipeline
from allcls_jax.experiments.benchmark import bench as benches
from allcls_jax.experiments.benchmark import recipe, timing
from allcls_jax.experiments.benchmark.bench import Bench
from allcls_jax.experiments.benchmark.peer_tuning import TUNING
from allcls_jax.experiments.benchmark.record import Figure, Row
from allcls_jax.experiments.benchmark.rows_forward import save_weights, stack_as_data
from allcls_jax.training import inputs, optim, state, steps
from allcls_jax.training.state import TrainState

AUGMENT = AugmentConfig(dihedral=True, rotation=180.0, scale=0.1, stain=0.1)

_SETTINGS = steps.RunSettings(
    np.uint32(0), np.ones(2, np.float32), np.float32(1), np.float32(1)
)

PEERS = tuple(TUNING)

_DeviceBatch = dict[str, jax.Array]


def fine_tuning(bench: Bench) -> Iterator[Row]:
    """Yields steps with and without augmentation, streamed, and a forward pass."""
    sizes = bench.sizes
    batch = sizes.tune_batch
    opened = bench.recipe(2 * batch)
    network = opened.network
    held = pipeline.hold(opened.images, opened.rows)
    resident = network.shardings.put_replicated(held.images)
    given = _batch(opened, batch, len(held.images))
    # As they are: what is turned is a part of augmentation.
    upright = {**given, "view": jnp.zeros_like(given["view"])}
    plain, varied = _Steps(opened, AugmentConfig()), _Steps(opened, AUGMENT)
    work = {
        "varied": functools.partial(varied, given, resident),
        "plain": functools.partial(plain, upright, resident),
        "forward": functools.partial(
            plain.compiled.eval, network.params, upright, resident
        ),
    }
    for one in work.values():
        timing.seconds(one, times=2)
    taken = timing.in_turns(
        {
            name: functools.partial(timing.seconds, one, times=sizes.times)
            for name, one in work.items()
        },
        repeats=sizes.repeats,
    )
    found = {
        name: timing.figure(values, count=batch, times=sizes.times)
        for name, values in taken.items()
    }
    peers = _peers(bench, opened, held.images, work["plain"])
    found["streamed"] = _streamed(bench, opened, varied)
    rates = {name: figure.value or 0.0 for name, figure in found.items()}
    settings = f"{bench.model}, batch {batch}, {sizes.dtype}, all parameters"
    for name, figure in found.items():
        beside = peers if name == "plain" else {}
        yield bench.row(
            f"fine-tuning {name}",
            figure,
            unit="images/s",
            settings=settings,
            peers=beside,
            against=benches.fastest(beside, PEERS) if beside else "",
        )
    for name, share in (
        ("ratio", rates["forward"] / rates["varied"]),
        ("augmentation", 1 - rates["varied"] / rates["plain"]),
        ("idle", max(0.0, 1 - rates["streamed"] / rates["varied"])),
    ):
        count = min(figure.count for figure in found.values())
        yield bench.row(
            f"fine-tuning {name}",
            Figure(share, count=count),
            unit="",
            settings=settings,
        )


class _Steps:
    """Steps that train all parameters, one at a call.

    Attributes:
      compiled: what they are made of.
    """

    def __init__(self, opened: recipe.Recipe, augment: AugmentConfig):
        network = opened.network
        mask: optim.Mask = jax.tree.map(lambda _: True, network.mask)
        optimizer = optim.make_optimizer(opened.config.optim, mask)
        self.compiled = steps.make_steps(
            network.model,
            network.preprocessing,
            opened.config.optim,
            mask,
            network.shardings,
            augment=augment,
            train=opened.config.train,
        )
        # The state is used up, and parameters are shared.
        own = jax.tree.map(jnp.copy, network.params)
        begun = state.create(own, optimizer, mask)
        self._state: TrainState = network.shardings.put_replicated(begun)

    def __call__(self, batch: _DeviceBatch, resident: jax.Array | None) -> jax.Array:
        self._state, loss = self.compiled.train(self._state, batch, resident, _SETTINGS)
        return loss


def _batch(opened: recipe.Recipe, size: int, num_images: int) -> _DeviceBatch:
    """Returns a batch of images that lie on the device, in any view."""
    rng = np.random.default_rng(0)
    return opened.network.shardings.put_batch(
        pipeline.Batch(
            position=rng.integers(num_images, size=size, dtype=np.int32),
            view=rng.integers(pipeline.NUM_VIEWS, size=size, dtype=np.int32),
            label=rng.integers(2, size=size, dtype=np.int32),
            mask=np.ones(size, np.float32),
            row=np.arange(size, dtype=np.int32),
        )
    )


def _peers(
    bench: Bench, opened: recipe.Recipe, images: np.ndarray, ours: Callable[[], Any]
) -> dict[str, Figure]:
    """Returns the peers' figures of a step without augmentation.

    One after the other, each in turns with ours: what all of them keep for the way back
    would not fit a device's memory.
    """
    sizes, network = bench.sizes, opened.network
    some = np.resize(images, (sizes.tune_batch, *images.shape[1:]))
    given = {
        "task": "tuning",
        "gpu": bench.gpu,
        "layers": stack_as_data(bench.model),
        "weights": save_weights(bench, bench.model, network.params),
        "mean": network.preprocessing.mean,
        "times": sizes.times,
    }
    grey = bench.save("tuning-grey", some)
    ready = bench.save("tuning-ready", np.asarray(network.preprocessing(some)))
    found = {}
    for name in PEERS:
        file = grey if name == "Keras" else ready
        found |= benches.side_by_side(
            ours,
            {name: {**given, "peer": name, "images": file}},
            times=sizes.times,
            repeats=sizes.repeats,
            count=sizes.tune_batch,
        )[1]
    return found


def _streamed(bench: Bench, opened: recipe.Recipe, step: _Steps) -> Figure:
    """Returns images per second where they are read from the pack meanwhile.

    From the second batch on, so that what was read ahead while nobody waited is little
    next to what is read.
    """
    sizes = bench.sizes
    batches = pipeline.training_batches(
        opened.images,
        opened.cells.table,
        pipeline.Order(opened.rows, 0, dihedral=True),
        inputs.reading_of(opened.config, sizes.tune_batch),
    )

    def one() -> Any:
        return step(opened.network.shardings.put_batch(next(batches)), None)

    jax.block_until_ready(one())
    taken = timing.seconds(one, times=sizes.streamed)
    return timing.figure([taken], count=sizes.tune_batch, times=sizes.streamed)
