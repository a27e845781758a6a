"""Batches of packed cells from grain.

Every batch has the same shape: the last one of an epoch is padded, and `mask` says
which images are real. The stream depends on the seed alone, not on the number of
workers, and starts at any batch, so a run resumes by the number of batches it has used.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import TypedDict

import grain
import numpy as np

from allcls_jax.data import transforms
from allcls_jax.data.packing import PackedCells

# Batches that are read while another one is computed.
_PREFETCH = 2


class Batch(TypedDict):
    """n images, padding included; of several processes each has its own block."""

    image: np.ndarray  # (n, size, size, 3) uint8, RGB
    label: np.ndarray  # (n,) int32: ALL = 1, HEM = 0
    mask: np.ndarray  # (n,) float32: 1 for an image, 0 for padding
    row: np.ndarray  # (n,) int32: of the table of cells, -1 for padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How batches are cut and read.

    Attributes:
      batch_size: images of a batch over all processes.
      image_size: pixels; stored images of another size are resized.
      num_workers: processes that read; 0 reads in threads of this one.
      process: number of this process among those that share the batch.
      num_processes: how many share it; must divide `batch_size`.
    """

    batch_size: int
    image_size: int
    num_workers: int = 0
    process: int = 0
    num_processes: int = 1


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of batches that show every image once."""
    return math.ceil(num_images / batch_size)


def training_batches(
    cells: PackedCells, rows: np.ndarray, reading: Reading, *, seed: int, start: int = 0
) -> Iterator[Batch]:
    """Yields shuffled batches without end; each epoch is a new order of all rows.

    Args:
      cells: the pack.
      rows: (n,) int64 rows to train on.
      reading: how.
      seed: of the order.
      start: the number of batches to leave out, those that a resumed run has used.
    """
    order = grain.MapDataset.source(rows.tolist()).seed(seed).shuffle()
    batches = order.batch(reading.batch_size, drop_remainder=False).repeat(None)
    return _read(cells, batches[start:], reading)


def evaluation_batches(
    cells: PackedCells, rows: np.ndarray, reading: Reading
) -> Iterator[Batch]:
    """Yields batches in which every row stands exactly once, in order."""
    order = grain.MapDataset.source(rows.tolist())
    return _read(cells, order.batch(reading.batch_size, drop_remainder=False), reading)


def _read(
    cells: PackedCells, batches: grain.MapDataset, reading: Reading
) -> Iterator[Batch]:
    """Turns batches of rows into batches of images."""
    # Batching comes before this: behind it the stream would depend on the workers.
    loaded = batches.map(_LoadBatch(cells, reading)).to_iter_dataset(
        grain.ReadOptions(num_threads=_PREFETCH, prefetch_buffer_size=_PREFETCH)
    )
    if reading.num_workers:
        loaded = loaded.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=reading.num_workers, per_worker_buffer_size=_PREFETCH
            )
        )
    return iter(loaded)


@dataclasses.dataclass(frozen=True)
class _LoadBatch(grain.transforms.Map):
    """Reads this process' block of a batch and pads it."""

    cells: PackedCells
    reading: Reading

    def map(self, element: np.ndarray) -> Batch:
        reading = self.reading
        block = reading.batch_size // reading.num_processes
        first = reading.process * block
        rows = element[first : first + block]
        size = reading.image_size
        batch = Batch(
            image=np.zeros((block, size, size, 3), np.uint8),
            label=np.zeros(block, np.int32),
            mask=np.zeros(block, np.float32),
            row=np.full(block, -1, np.int32),
        )
        for i, row in enumerate(rows.tolist()):
            batch["image"][i] = transforms.resize(self.cells[row], size)
        batch["label"][: len(rows)] = self.cells.table.label[rows]
        batch["mask"][: len(rows)] = 1
        batch["row"][: len(rows)] = rows
        return batch
