"""What runs are fed: cells, as images or as features of a network's frozen part."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from allcls_jax import terminal
from allcls_jax.config import Config, Place
from allcls_jax.data import packing, pipeline, prepare
from allcls_jax.data.cells import CellTable
from allcls_jax.models import features
from allcls_jax.models.parts import split_at_features, split_at_learning
from allcls_jax.models.vgg import Params
from allcls_jax.paths import default_cache_dir
from allcls_jax.training import placement, sharding
from allcls_jax.training.network import Network
from allcls_jax.training.steps import make_features_step


def cache_dir(config: Config) -> Path:
    """Returns where packed cells, weights and features are kept."""
    given = config.cache_dir
    return Path(given).expanduser() if given else default_cache_dir()


def open_cells(config: Config) -> packing.PackedCells:
    """Opens the cells; the first process packs them, the others wait for it."""

    def open_them() -> packing.PackedCells:
        return prepare.open_cells(
            config.data, pack_size=config.pack_size, cache_dir=cache_dir(config)
        )

    cells = sharding.on_first_process(open_them)
    return open_them() if cells is None else cells


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of a table's images, computed and kept.

    Attributes:
      store: has them.
      images: of the same rows; tells their keys.
      rows: (n,) int64 rows of the table.
      num_views: of each: all 8, or the first, the image itself.
    """

    store: features.FeatureStore
    images: pipeline.PackedImages
    rows: np.ndarray
    num_views: int

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        width = self.store.shape[0] * self.store.dtype.itemsize
        return len(self.rows) * self.num_views * width

    def keys(self, rows: np.ndarray, views: np.ndarray) -> list[features.Key]:
        """Returns the keys of rows (n,) in views (n,)."""
        return [*map(self.images.key, rows.tolist(), views.tolist())]

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns the features of images as they are: (n, m)."""
        return self.store.read(self.keys(rows, np.zeros(len(rows), np.int32)))


def compute_features(
    config: Config,
    images: pipeline.PackedImages,
    table: CellTable,
    rows: np.ndarray,
    network: Network,
    *,
    held: pipeline.HeldImages | None = None,
) -> Features | None:
    """Computes what is missing of the features of a network's frozen part.

    Args:
      config: validated.
      images: of the table's rows.
      table: records of the pack and, below it, of copies.
      rows: (n,) int64 rows of it that are used.
      network: says what is frozen.
      held: the same images, where they are in memory already.

    Returns:
      The features; None where no block is frozen, where images vary in ways that
      cannot be kept, where features of a block would fill the memory, or where the
      configuration wants none.
    """
    fixed, _ = split_at_learning(network.model, network.mask)
    if not (
        fixed.layers and config.train.cache_features and not config.augment.continuous
    ):
        return None
    if config.evaluation.views > pipeline.NUM_VIEWS:
        terminal.say(
            f"evaluation.views = {config.evaluation.views}: no features are kept of "
            "other angles than quarter turns; the frozen part is computed in every step"
        )
        return None
    cells = images.cells
    several = config.augment.dihedral or config.evaluation.views > 1
    num_views = pipeline.NUM_VIEWS if several else 1
    size = features.num_bytes(fixed, images.size) * len(rows) * num_views
    if network.learns_stack and not placement.fits_memory(size):
        terminal.say(
            f"{fixed.layers[-1].name} of all images: {size / 2**30:.1f} GiB, more than "
            "may be kept; the frozen part is computed in every step"
        )
        return None
    store = features.open_store(
        fixed,
        network.params,
        network.preprocessing,
        image_size=images.size,
        source=(packing.FORMAT, cells.size, cells.crop),
        cache_dir=cache_dir(config),
    )
    found = Features(store, images, rows, num_views)
    every = np.repeat(rows, num_views)
    views = np.tile(np.arange(num_views, dtype=np.int32), len(rows))
    missing = sharding.union(store.missing(found.keys(every, views)), len(every))
    if len(missing):
        # Identical images have one key, and are computed once.
        keys = found.keys(every[missing], views[missing])
        firsts = dict(zip(keys[::-1], missing[::-1].tolist(), strict=True))
        missing = np.array(sorted(firsts.values()), np.int64)
        _compute(
            config,
            found,
            table,
            every[missing],
            views[missing],
            network,
            held or images,
        )
    terminal.say(
        f"features of the frozen part: {len(missing):,} computed, "
        f"{len(every) - len(missing):,} kept from before"
    )
    return found


def features_of(
    config: Config,
    images: pipeline.Images,
    table: CellTable,
    rows: np.ndarray,
    network: Network,
    params: Params,
) -> np.ndarray:
    """Returns features (n, m) float32 of images as they are, and keeps none.

    Args:
      config: validated.
      images: of the table's rows.
      table: of all cells.
      rows: (n,) int64, each once.
      network: whose features they are, all of its stack being taken for frozen.
      params: of the whole network.
    """
    fixed, _ = split_at_features(network.model)
    forward = make_features_step(
        fixed, network.preprocessing, network.shardings, np.dtype(np.float32)
    )
    reading = reading_of(config, forward_batch_size(config, network))
    found = [
        np.asarray(forward(params, network.shardings.put_batch(batch)))
        for batch in pipeline.evaluation_batches(images, table, rows, reading)
    ]
    return np.concatenate(found)[: len(rows)]


def _compute(
    config: Config,
    found: Features,
    table: CellTable,
    rows: np.ndarray,
    views: np.ndarray,
    network: Network,
    images: pipeline.Images,
) -> None:
    """Computes the features of rows (n,) in views (n,)."""
    fixed, _ = split_at_learning(network.model, network.mask)
    forward = make_features_step(
        fixed, network.preprocessing, network.shardings, found.store.dtype
    )
    size = forward_batch_size(config, network)
    reading = reading_of(config, size)
    keys = found.keys(rows, views)
    batches = pipeline.evaluation_batches(images, table, rows, reading, views=views)
    first = jax.process_index() == 0
    with (
        terminal.track("features", len(rows), "images") as advance,
        found.store.adding() as writer,
    ):

        def keep(begin: int, values: jax.Array) -> None:
            taken = keys[begin : begin + size]
            if first:
                writer.put(taken, np.asarray(values)[: len(taken)])
            advance(len(taken))

        pending: tuple[int, jax.Array] | None = None
        for number, batch in enumerate(batches):
            values = forward(network.params, network.shardings.put_batch(batch))
            # The device is at work on this batch while the last one is written.
            if pending is not None:
                keep(*pending)
            pending = number * size, values
        if pending is not None:
            keep(*pending)
    sharding.wait_for_all("features")


def place_images(
    config: Config, images: pipeline.Images, rows: np.ndarray, network: Network
) -> tuple[pipeline.Images, jax.Array | None]:
    """Brings images to where training wants them.

    Returns:
      The images, held in memory unless they stay on disk; and all of them on the
      devices, (n, size, size, 3) uint8, or None.
    """
    size = len(rows) * images.size**2 * 3
    place = placement.choose(config.train.keep, size, "images")
    if place is Place.DISK:
        return images, None
    held = pipeline.hold(images, rows)
    if place is Place.HOST:
        return held, None
    return held, network.shardings.put_replicated(held.images)


def forward_batch_size(config: Config, network: Network) -> int:
    """Returns how many images go through the network at once, nothing being learnt."""
    size = config.train.forward_batch_size
    if size is not None:
        sharding.check_batch_size("train.forward_batch_size", size)
        return size
    return placement.fitting_batch(
        network.model, config.data.image_size, learning=False
    )


def reading_of(config: Config, batch_size: int) -> pipeline.Reading:
    """Returns how this process reads its blocks of batches of that size."""
    return pipeline.Reading(
        batch_size=batch_size,
        num_workers=config.data.num_workers,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )
