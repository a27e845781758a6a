"""What the baselines see: figures of each image, and the rows of each run's splits.

Images are found again by id, patient, label and sha256 of their file: a baseline is
fitted on the very images that the model was trained on, or not at all.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from allcls_jax.config import AugmentConfig, Config, OptimConfig, SplitKind
from allcls_jax.data import copies, left_out, partition_file, pipeline, splits
from allcls_jax.data.cells import CellTable
from allcls_jax.data.copies import Cells
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.splits import Split
from allcls_jax.errors import list_problems
from allcls_jax.evaluation.baselines import descriptors
from allcls_jax.evaluation.predictions import Predictions, Run
from allcls_jax.models.parts import split_at_features
from allcls_jax.models.vgg import layer_table
from allcls_jax.training import inputs
from allcls_jax.training.network import Network, build

# What tells an image in `partition.csv` and in a table of cells.
_IDENTITY = ("image_id", "patient", "label", "sha256")

# Images whose features are averaged at a time.
_AT_ONCE = 256

PartitionRows = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class Uses:
    """What one run uses its images for.

    Attributes:
      rows: split → (n,) int64 rows of the table of cells, ascending.
      group: (len(table),) str, of the rows' patients; empty for images without a use.
    """

    rows: Mapping[Split, np.ndarray]
    group: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True)
class Pictures:
    """The images of runs that draw on the same cells.

    Attributes:
      table: n records.
      values: key of a baseline → (n, d) float64, NaN for images without a use.
      uses: of each run.
    """

    table: CellTable
    values: Mapping[str, np.ndarray]
    uses: Mapping[Run, Uses]


def read_partitions(workdir: Path, model: Predictions) -> dict[Run, PartitionRows]:
    """Returns the rows of each run's `partition.csv`.

    Args:
      workdir: of a run or a cross-validation.
      model: its predictions.

    Raises:
      InputError: if one is missing, or names other images than were predicted.
    """
    partitions: dict[Run, PartitionRows] = {}
    for run, rows in model.runs():
        name = f"repeat{run.repeat}-fold{run.test_fold}-seed{run.seed}"
        folder = workdir / name if (workdir / name).is_dir() else workdir
        partitions[run] = partition_file.read(folder)
        wrong = []
        for use in (Split.VALIDATION, Split.TEST):
            named = {r["image_id"] for r in partitions[run] if r["split"] == use}
            predicted = set(rows.of(use).image_id.tolist())
            wrong += [f"{use} image {image}" for image in sorted(named ^ predicted)]
        if wrong:
            raise list_problems(
                f"{folder}: its partition and its predictions name different images",
                wrong,
                remedy="Something was removed or mixed up: train again in another "
                "folder.",
            )
    return partitions


def pictures(
    config: Config, cells: PackedCells, partitions: Mapping[Run, PartitionRows]
) -> Iterator[Pictures]:
    """Yields what the baselines see of each run's images, runs of equal cells together.

    Args:
      config: of the runs.
      cells: the pack.
      partitions: from `read_partitions`.

    Raises:
      InputError: if images are not among the cells, or weights are not found.
    """
    # Only turned copies differ from repeat to repeat.
    turned = config.data.split is SplitKind.IMAGE_COPIES
    repeats = sorted({run.repeat for run in partitions}) if turned else [None]
    found: list[tuple[CellTable, copies.TurnedCopies | None, dict[Run, Uses]]] = []
    for repeat in repeats:
        lower, table = None, cells.table
        if repeat is not None:
            rows = left_out.read(config.data.without).rest(
                cells.table, splits.limit(cells.table, config.data.limit)
            )
            lower, table = copies.balance(cells, rows, repeat=repeat)
        uses = {
            run: _uses(partition, table)
            for run, partition in partitions.items()
            if repeat in (None, run.repeat)
        }
        found.append((table, lower, uses))
    backbone = Backbone(config, cells)
    for table, lower, uses in found:
        used = np.zeros(len(table), bool)
        for each in uses.values():
            for rows in each.rows.values():
                used[rows] = True
        images = pipeline.PackedImages(cells, lower, config.data.image_size)
        values = _values(table, images, np.flatnonzero(used), backbone)
        yield Pictures(table, values, uses)


class Backbone:
    """The pretrained convolutional stack, whatever a run has trained of it since."""

    def __init__(self, config: Config, cells: PackedCells):
        self.config = copy.deepcopy(config)
        self.config.optim.trainable = OptimConfig().trainable
        self.config.train.cache_features = True
        self.config.augment = AugmentConfig()
        self.cache_dir = inputs.cache_dir(config)
        self._network: Network = build(
            self.config, cells.source, cache_dir=self.cache_dir
        )
        stack, _ = split_at_features(self._network.model)
        shapes = layer_table(stack.layers, self.config.data.image_size)
        # Before the last layer, which flattens or averages.
        self.channels = shapes[-2].shape[-1]

    def pooled(
        self, images: pipeline.PackedImages, table: CellTable, rows: np.ndarray
    ) -> np.ndarray:
        """Returns features averaged over the picture: (n, channels) float64.

        Args:
          images: by row of the table.
          table: records of the pack and, below it, of copies.
          rows: (n,) int64.
        """
        kept = inputs.compute_features(self.config, images, table, rows, self._network)
        assert kept is not None, "the stack is frozen"
        found = np.empty((len(rows), self.channels))
        for begin in range(0, len(rows), _AT_ONCE):
            values = kept.read(rows[begin : begin + _AT_ONCE]).astype(np.float32)
            places = values.reshape(len(values), -1, self.channels)
            found[begin : begin + _AT_ONCE] = places.mean(axis=1, dtype=np.float64)
        return found


def _values(
    table: CellTable,
    images: pipeline.PackedImages,
    rows: np.ndarray,
    backbone: Backbone,
) -> dict[str, np.ndarray]:
    """Returns the figures of all baselines.

    Args:
      table: n records.
      images: by row of the table.
      rows: that are used.
      backbone: gives features.
    """
    drawn = np.full((len(table), descriptors.WIDTH), np.nan)
    pooled = np.full((len(table), backbone.channels), np.nan)
    parts: list[tuple[Cells, int]] = [(images.cells, 0)]
    if images.copies is not None:
        parts.append((images.copies, len(images.cells)))
    for cells, begin in parts:
        here = rows[(rows >= begin) & (rows < begin + len(cells))]
        if not len(here):
            continue
        drawn[here] = descriptors.open_descriptors(
            cells, here - begin, cache_dir=backbone.cache_dir
        )
    pooled[rows] = backbone.pooled(images, table, rows)
    return {
        "majority": np.zeros((len(table), 0)),
        "cell_area": np.log(np.maximum(table.area, 1))[:, np.newaxis],
        "pooled_features": pooled,
    } | {kind: descriptors.of_kind(drawn, kind) for kind in descriptors.NAMES}


def _uses(partition: PartitionRows, table: CellTable) -> Uses:
    """Finds the images of a partition in the table of cells."""
    columns = (getattr(table, name).tolist() for name in _IDENTITY)
    row_of = {
        tuple(map(str, identity)): row
        for row, identity in enumerate(zip(*columns, strict=True))
    }
    group = np.full(len(table), "", dtype=object)
    rows: dict[Split, list[int]] = {use: [] for use in Split}
    missing = []
    for record in partition:
        row = row_of.get(tuple(record[name] for name in _IDENTITY))
        if row is None:
            missing.append(f"image {record['image_id']} of patient {record['patient']}")
            continue
        rows[Split(record["split"])].append(row)
        group[row] = record["group"]
    if missing:
        raise list_problems(
            "images that the run has used are not among the cells, or with another "
            "label or file",
            missing,
            remedy="Give the cells that it was trained on with --data.",
        )
    return Uses(
        {use: np.sort(np.array(found, np.int64)) for use, found in rows.items()},
        group.astype(str),
    )
