"""Batches of cells from grain.

Every batch has the same shape: the last one of an epoch is padded, and `mask` says
which images are real. The stream depends on the seed alone, not on the number of
workers, and starts at any batch, so a run resumes by the number of batches it has used.
"""

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Literal, NotRequired, Protocol, TypedDict

import grain
import numpy as np

from allcls_jax.data import transforms
from allcls_jax.data.cells import CellTable
from allcls_jax.data.copies import Cells

# Batches that are read, in as many threads, while another one is computed.
_PREFETCH = min(8, os.cpu_count() or 1)

_UINT8 = np.dtype(np.uint8)


class Batch(TypedDict):
    """n images, padding included; of several processes each has its own block."""

    image: NotRequired[np.ndarray]  # (n, size, size, 3) uint8, RGB
    features: NotRequired[np.ndarray]  # (n, m) float32, in place of the images
    label: np.ndarray  # (n,) int32: ALL = 1, HEM = 0
    mask: np.ndarray  # (n,) float32: 1 for an image, 0 for padding
    row: np.ndarray  # (n,) int32: of the table of cells, -1 for padding


class Inputs(Protocol):
    """What the network is given of each cell, by row of the table; picklable."""

    @property
    def name(self) -> Literal["image", "features"]:
        """The key in a batch."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one cell."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of its values."""
        ...

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns what is given of one cell."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """Packed images, resized where the network wants another size.

    Attributes:
      cells: the pack, or turned copies from it.
      size: pixels.
    """

    cells: Cells
    size: int
    name: Literal["image"] = "image"
    dtype: np.dtype = _UINT8

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, size, 3)."""
        return self.size, self.size, 3

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns an image: (size, size, 3) uint8, RGB."""
        return transforms.resize(self.cells[row], self.size)


@dataclasses.dataclass(frozen=True)
class Joined:
    """The inputs of two tables, one below the other.

    Attributes:
      upper: of the rows that come first.
      lower: of those behind them; of the same kind.
      num_upper: rows of the first table.
    """

    upper: Inputs
    lower: Inputs
    num_upper: int

    @property
    def name(self) -> Literal["image", "features"]:
        """The key in a batch."""
        return self.upper.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one cell."""
        return self.upper.shape

    @property
    def dtype(self) -> np.dtype:
        """Of its values."""
        return self.upper.dtype

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns what is given of one cell."""
        if row < self.num_upper:
            return self.upper[row]
        return self.lower[row - self.num_upper]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How batches are cut and read.

    Attributes:
      batch_size: images of a batch over all processes.
      num_workers: processes that read training batches; 0 reads in threads of this
        one, as evaluation always does: starting processes takes longer than it.
      process: number of this process among those that share the batch.
      num_processes: how many share it; must divide `batch_size`.
    """

    batch_size: int
    num_workers: int = 0
    process: int = 0
    num_processes: int = 1


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of batches that show every image once."""
    return math.ceil(num_images / batch_size)


def training_batches(
    inputs: Inputs,
    table: CellTable,
    rows: np.ndarray,
    reading: Reading,
    *,
    seed: int,
    start: int = 0,
) -> Iterator[Batch]:
    """Yields shuffled batches without end; each epoch is a new order of all rows.

    Args:
      inputs: what the network is given.
      table: the records of all cells.
      rows: (n,) int64 rows of the table to train on.
      reading: how.
      seed: of the order.
      start: the number of batches to leave out, those that a resumed run has used.
    """
    order = grain.MapDataset.source(rows.tolist()).seed(seed).shuffle()
    batches = order.batch(reading.batch_size, drop_remainder=False).repeat(None)
    loaded = _load(_LoadBatch(inputs, table, reading), batches[start:])
    if reading.num_workers:
        workers = grain.MultiprocessingOptions(
            num_workers=reading.num_workers, per_worker_buffer_size=2
        )
        loaded = loaded.mp_prefetch(workers, worker_init_fn=_end_with_parent)
    return iter(loaded)


def evaluation_batches(
    inputs: Inputs, table: CellTable, rows: np.ndarray, reading: Reading
) -> Iterator[Batch]:
    """Yields batches in which every row stands exactly once, in order."""
    order = grain.MapDataset.source(rows.tolist())
    batches = order.batch(reading.batch_size, drop_remainder=False)
    return iter(_load(_LoadBatch(inputs, table, reading), batches))


def _load(load: "_LoadBatch", batches: grain.MapDataset) -> grain.IterDataset:
    """Turns batches of rows into batches of inputs."""
    # Batching comes before this: behind it the stream would depend on the workers.
    return batches.map(load).to_iter_dataset(
        grain.ReadOptions(num_threads=_PREFETCH, prefetch_buffer_size=_PREFETCH)
    )


def _end_with_parent(worker: int, num_workers: int) -> None:
    """Makes a worker end with its run, and not before.

    A run that is killed would leave it waiting for ever; a Ctrl-C on the terminal goes
    to all processes, and the run still needs batches while it saves.
    """
    del worker, num_workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class _LoadBatch(grain.transforms.Map):
    """Reads this process' block of a batch and pads it."""

    inputs: Inputs
    table: CellTable
    reading: Reading

    def map(self, element: np.ndarray) -> Batch:
        reading = self.reading
        block = reading.batch_size // reading.num_processes
        first = reading.process * block
        rows = element[first : first + block]
        inputs = self.inputs
        values = np.zeros((block, *inputs.shape), inputs.dtype)
        for i, row in enumerate(rows.tolist()):
            values[i] = inputs[row]
        batch = Batch(
            label=np.zeros(block, np.int32),
            mask=np.zeros(block, np.float32),
            row=np.full(block, -1, np.int32),
        )
        batch[inputs.name] = values
        batch["label"][: len(rows)] = self.table.label[rows]
        batch["mask"][: len(rows)] = 1
        batch["row"][: len(rows)] = rows
        return batch
