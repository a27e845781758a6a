"""What runs have in common: cells, network, inputs; made once, used by every fold."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from allcls_jax import terminal
from allcls_jax.config import Config, SplitKind
from allcls_jax.config_rules import validate
from allcls_jax.data import copies, left_out, pipeline, prepare, splits
from allcls_jax.data.cells import CellTable
from allcls_jax.data.packing import PackedCells
from allcls_jax.models.vgg import LayerRow, layer_table
from allcls_jax.training import inputs, placement, sharding
from allcls_jax.training.network import Network, build, make_model


@dataclasses.dataclass(frozen=True)
class Data:
    """The cells of a configuration.

    Attributes:
      config: with what was left open filled in.
      cells: the pack.
      copies: turned copies, where the split wants them.
      every: records of the pack, and below it of the copies.
      rows: (n,) int64 rows of `every` that take part.
      table: their records.
      left_out: patients of the pack who take no part.
    """

    config: Config
    cells: PackedCells
    copies: copies.TurnedCopies | None
    every: CellTable
    rows: np.ndarray
    table: CellTable
    left_out: tuple[str, ...] = ()

    def partition(self, config: Config) -> splits.Partition:
        """Divides the cells as a run's configuration says."""
        pairs = [] if self.copies is None else self.copies.pairs()
        return splits.partition(
            self.table,
            config.data,
            seed=config.seed,
            copies=pairs,
            absent=self.left_out,
        )


@dataclasses.dataclass(frozen=True)
class Setup:
    """All that a run needs but its partition.

    Attributes:
      config: with what was left open filled in; of which its data section says who
        tests, which a run may change.
      data: the cells.
      network: with its parameters in place.
      images: by row of `data.every`.
      features: of them, where the backbone is frozen and features are kept.
    """

    config: Config
    data: Data
    network: Network
    images: pipeline.PackedImages
    features: inputs.Features | None


def open_data(config: Config) -> Data:
    """Opens the cells, packing them on first use.

    Raises:
      InputError: if they cannot be read, or not be divided as the configuration says.
    """
    cells = inputs.open_cells(config)
    without = left_out.read(config.data.without)
    # The rest keeps the images that it has of all.
    rows = without.rest(cells.table, splits.limit(cells.table, config.data.limit))
    kind = splits.split_kind(cells.table.take(rows), config.data)
    asked, config = config, config.resolved(cells.source, kind)
    # Rules may be broken by what was left open; but a pack may be of any source.
    data = dataclasses.replace(config.data, source=asked.data.source)
    validate(dataclasses.replace(config, data=data))
    config = _with_batch_size(config)
    config.data.without = without.setting
    if kind is not SplitKind.IMAGE_COPIES:
        table = cells.table.take(rows)
        return Data(config, cells, None, cells.table, rows, table, without.patients)
    turned, every = copies.balance(cells, rows, repeat=config.data.repeat)
    rows = np.concatenate([rows, np.arange(len(cells), len(every))])
    table = every.take(rows)
    return Data(config, cells, turned, every, rows, table, without.patients)


def set_up(config: Config, data: Data) -> Setup:
    """Builds the network and computes what is missing of its frozen part's features.

    Args:
      config: as `data.config`, save that a run's seed and split may differ.
      data: the cells.
    """
    network = build(config, data.cells.source, cache_dir=inputs.cache_dir(config))
    images = pipeline.PackedImages(data.cells, data.copies, config.data.image_size)
    features = inputs.compute_features(config, images, data.every, data.rows, network)
    return Setup(config, data, network, images, features)


def layer_rows(config: Config, network: Network) -> list[dict[str, object]]:
    """Returns the paper's layer table: `name`, `output`, `parameters`, `state`."""
    layers: list[LayerRow] = layer_table(network.model.layers, config.data.image_size)
    rows: list[dict[str, object]] = []
    for layer in layers:
        moves = {bool(m) for m in network.mask.get(layer.name, {}).values()}
        state = " / ".join("trainable" if m else "frozen" for m in sorted(moves))
        rows.append(
            {
                "name": layer.name,
                "output": list(layer.shape),
                "parameters": layer.parameters,
                "state": state,
            }
        )
    return rows


def show_layers(config: Config, network: Network) -> None:
    """Prints the layer table of the paper, with what is frozen."""
    rows: list[Sequence[object]] = []
    for name, shape, parameters, state in map(dict.values, layer_rows(config, network)):
        assert isinstance(shape, list)
        rows.append((name, ", ".join(map(str, shape)), f"{parameters:,}", state))
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


def show_cells(data: Data) -> None:
    """Prints the numbers of images and patients."""
    prepare.show_counts(data.cells)
    if data.left_out:
        terminal.say(
            f"left out: {len(data.left_out):,} patients (data.without = "
            f"{data.config.data.without})"
        )
    if data.copies is not None and len(data.copies):
        terminal.warn(
            f"{len(data.copies):,} turned copies balance the classes before the split "
            "by image: a cell and its copies may stand on both sides"
        )


def _with_batch_size(config: Config) -> Config:
    """Fills in the size of a batch, where it is left open."""
    if config.train.batch_size is None:
        config.train.batch_size = placement.fitting_batch(
            make_model(config), config.data.image_size, learning=True
        )
    sharding.check_batch_size("train.batch_size", config.train.batch_size)
    return config
