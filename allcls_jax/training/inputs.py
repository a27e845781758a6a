"""What a run is fed: its cells, as images or as features of a frozen backbone."""

from pathlib import Path

import jax
import numpy as np

from allcls_jax import terminal
from allcls_jax.config import Config
from allcls_jax.data import pipeline, prepare
from allcls_jax.data.copies import Cells
from allcls_jax.data.packing import PackedCells
from allcls_jax.models import features
from allcls_jax.models.vgg import split_at_features
from allcls_jax.paths import default_cache_dir
from allcls_jax.training import sharding
from allcls_jax.training.network import Network
from allcls_jax.training.steps import Steps

# Images of a batch on one device whose features are computed: what fits a CPU's caches,
# and fills anything else.
_FEATURE_BATCH = {"cpu": 8}


def cache_dir(config: Config) -> Path:
    """Returns where packed cells, weights and features are kept."""
    given = config.cache_dir
    return Path(given).expanduser() if given else default_cache_dir()


def open_cells(config: Config) -> PackedCells:
    """Opens the cells; the first process packs them, the others wait for it."""

    def open_them() -> PackedCells:
        return prepare.open_cells(
            config.data, pack_size=config.pack_size, cache_dir=cache_dir(config)
        )

    cells = sharding.on_first_process(open_them)
    return open_them() if cells is None else cells


def make_inputs(
    config: Config,
    cells: Cells,
    rows: np.ndarray,
    network: Network,
    compiled: Steps,
) -> pipeline.Inputs:
    """Returns images, or the features of a frozen backbone, computing those missing.

    Args:
      config: validated.
      cells: the pack, or turned copies from it.
      rows: (n,) int64 rows of its table that the run uses.
      network: says what is frozen.
      compiled: its steps.
    """
    images = pipeline.Images(cells, config.data.image_size)
    backbone, _ = split_at_features(network.model)
    stack = [
        network.mask[layer.name]
        for layer in backbone.layers
        if layer.name in network.mask
    ]
    if not config.train.cache_features or any(jax.tree.leaves(stack)):
        return images
    kept = features.open_features(
        cells,
        backbone,
        network.params,
        network.preprocessing,
        image_size=config.data.image_size,
        cache_dir=cache_dir(config),
    )
    missing = sharding.union(kept.missing(rows), len(cells))
    if len(missing):
        each = _FEATURE_BATCH.get(jax.default_backend(), 128)
        batched = reading(config, each * jax.device_count())

        def forward(batch: pipeline.Batch) -> tuple[jax.Array, jax.Array]:
            return compiled.features(network.params, network.shardings.put_batch(batch))

        with terminal.track("features", len(missing), "images") as advance:
            batches = pipeline.evaluation_batches(images, cells.table, missing, batched)
            features.compute(kept, batches, forward, advance)
    terminal.say(
        f"features of the frozen backbone: {len(missing):,} computed, "
        f"{len(rows) - len(missing):,} kept from before"
    )
    return kept


def reading(config: Config, batch_size: int) -> pipeline.Reading:
    """Returns how this process reads its blocks of batches of that size."""
    return pipeline.Reading(
        batch_size=batch_size,
        num_workers=config.data.num_workers,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )
