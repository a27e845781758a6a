"""Our own whole recipe, without its files: from packed images to a trained head."""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from allcls_jax.config import Config, DataConfig, ModelName, Place, SyntheticConfig
from allcls_jax.data import pipeline, prepare
from allcls_jax.data.packing import PackedCells
from allcls_jax.training import inputs
from allcls_jax.training.heads import Head, Heads
from allcls_jax.training.network import Network, build

# Rows that heads name for their validation, which is not a part of what is timed.
_UNUSED = 2


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The paper's, ready to be run.

    Attributes:
      config: of the recipe.
      cells: packed.
      rows: (n,) int64 rows to train on.
      network: with its parameters in place.
      held: the images of the rows, where they were brought into memory.
    """

    config: Config
    cells: PackedCells
    rows: np.ndarray
    network: Network
    held: pipeline.HeldImages | None = None

    @property
    def images(self) -> pipeline.PackedImages:
        """As the network takes them."""
        return pipeline.PackedImages(self.cells, None, self.config.data.image_size)

    def run(self, cache: Path, *, batch: int, epochs: int) -> float:
        """Computes features, trains a head on all images, and returns the seconds.

        Args:
          cache: a folder without features in it.
          batch: images of a step.
          epochs: of the head.
        """
        config = dataclasses.replace(self.config, cache_dir=str(cache))
        begun = time.perf_counter()
        features = inputs.compute_features(
            config,
            self.images,
            self.cells.table,
            self.rows,
            self.network,
            held=self.held,
        )
        assert features is not None, "the stack is frozen"
        heads = make_heads(
            self.network, features, self.cells, config, number=1, batch=batch
        )
        state = heads.begin()
        for epoch in range(epochs):
            state = heads.epoch(state, epoch)
        jax.block_until_ready(state)
        return time.perf_counter() - begun


def open_recipe(
    model: str,
    *,
    image_size: int,
    packed: int,
    num_images: int,
    pack_cache: str,
    data: str | None,
) -> Recipe:
    """Packs cells where that was not done before, and builds the network.

    Args:
      model: name of the variant; its weights are random.
      image_size: pixels.
      packed: number of cells that are drawn and packed where there are no real ones.
      num_images: to train on, at most.
      pack_cache: folder of packs.
      data: folder of real cells; None draws some.
    """
    config = Config(data=DataConfig(dir=data, image_size=image_size))
    config.model.name = ModelName(model)
    config.model.weights = "random"
    config.train.keep = Place.DEVICE
    config.data.synthetic = synthetic(packed)
    cells = prepare.open_cells(
        config.data, pack_size=config.pack_size, cache_dir=Path(pack_cache)
    )
    network = build(config, cells.source, cache_dir=Path(pack_cache))
    rows = np.flatnonzero(cells.table.label >= 0)[:num_images]
    return Recipe(config, cells, rows, network)


def synthetic(num_images: int) -> SyntheticConfig:
    """Returns how cells are drawn: of 12 patients at least, which is the fewest."""
    patients = 2 * max(6, min(num_images // 16, 30))
    return SyntheticConfig(num_images=num_images, num_patients=patients)


def make_heads(
    network: Network,
    features: inputs.Features,
    cells: PackedCells,
    config: Config,
    *,
    number: int,
    batch: int,
) -> Heads:
    """Returns heads with seeds of their own, to be trained together on all rows."""
    rows = features.rows
    return Heads(
        network,
        config.optim,
        [
            Head(
                order=pipeline.Order(rows, seed),
                validation=rows[:_UNUSED],
                params=network.learning_params(seed),
                class_weights=(1.0, 1.0),
                learning_rate=config.optim.learning_rate,
                weight_decay=config.optim.weight_decay,
                dropout=config.model.dropout,
                seed=seed,
            )
            for seed in range(number)
        ],
        features,
        cells.table,
        train=dataclasses.replace(config.train, batch_size=batch, num_epochs=1),
        place=Place.DEVICE,
    )
