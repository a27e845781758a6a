"""Images and batches of cells: in what order, and by grain where they are streamed.

Every batch has the same shape: the last one of an epoch is padded, and `mask` says
which images are real. The order depends on the seed and the epoch alone, not on the
number of workers, and starts at any batch, so a run resumes by the number of batches it
has used.
"""

import dataclasses
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NotRequired, Protocol, TypedDict, TypeVar

import grain
import numpy as np

from allcls_jax.config import Sampling, TrainConfig
from allcls_jax.data import transforms
from allcls_jax.data.cells import CellTable
from allcls_jax.data.copies import VIEWS, TurnedCopies, compose, turn
from allcls_jax.data.packing import PackedCells
from allcls_jax.data.threads import in_threads

# Batches that are read, in as many threads, while another one is computed.
_PREFETCH = min(8, os.cpu_count() or 1)

_Read = TypeVar("_Read")

NUM_VIEWS = 1 + len(VIEWS)  # flips and quarter turns; view 0 is the image itself

PADDING = -1  # in place of a row


class Batch(TypedDict):
    """n images, padding included; of several processes each has its own block."""

    image: NotRequired[np.ndarray]  # (n, size, size, 3) uint8, RGB
    # In place of the images, where all of them lie on the devices: (n,) int32, which.
    position: NotRequired[np.ndarray]
    view: np.ndarray  # (n,) int32, from 0 to 7: how to turn and flip the image
    label: np.ndarray  # (n,) int32: ALL = 1, HEM = 0
    mask: np.ndarray  # (n,) float32: 1 for an image, 0 for padding
    row: np.ndarray  # (n,) int32: of the table of cells, -1 for padding


class Images(Protocol):
    """Images by row of the table of cells; picklable."""

    @property
    def size(self) -> int:
        """Height and width, pixels."""
        ...

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns an image: (size, size, 3) uint8, RGB."""
        ...


@dataclasses.dataclass(frozen=True)
class PackedImages:
    """Packed images, resized where the network wants another size; copies below them.

    Attributes:
      cells: the pack.
      copies: turned copies from it, in the rows behind its own.
      size: pixels.
    """

    cells: PackedCells
    copies: TurnedCopies | None
    size: int

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns an image: (size, size, 3) uint8, RGB."""
        original, view = self._original(row)
        image = transforms.resize(self.cells[original], self.size)
        return turn(image, view)

    def key(self, row: int, view: int) -> tuple[bytes, int]:
        """Returns what a view of an image is: its original's sha256, and view of that.

        The same for equal pictures of one pack, whatever their rows.
        """
        original, own = self._original(row)
        sha256 = str(self.cells.table.sha256[original])
        return bytes.fromhex(sha256), compose(own, view)

    def _original(self, row: int) -> tuple[int, int]:
        if 0 <= row < len(self.cells):
            return row, 0
        behind = row - len(self.cells)
        if self.copies is None or not 0 <= behind < len(self.copies):
            raise IndexError(row)
        return self.copies.original(behind)


@dataclasses.dataclass(frozen=True)
class HeldImages:
    """Images in this machine's memory.

    Attributes:
      rows: (n,) int64, ascending, of the table.
      images: (n, size, size, 3) uint8.
    """

    rows: np.ndarray
    images: np.ndarray

    @property
    def size(self) -> int:
        """Height and width, pixels."""
        return self.images.shape[1]

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns an image: (size, size, 3) uint8, RGB."""
        return self.images[self.positions(np.array([row]))[0]]

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Returns where rows (k,) stand: (k,) int32; 0 for padding."""
        found = np.searchsorted(self.rows, rows)
        known = self.rows[np.minimum(found, len(self.rows) - 1)] == rows
        if not np.all(known | (rows == PADDING)):
            raise IndexError(rows[~known])
        return np.where(rows == PADDING, 0, found).astype(np.int32)


def hold(images: Images, rows: np.ndarray) -> HeldImages:
    """Reads images into memory, in threads.

    Args:
      images: are read.
      rows: (n,) int64, each once.
    """
    rows = np.sort(rows)
    held = np.empty((len(rows), images.size, images.size, 3), np.uint8)

    def read(position: int) -> None:
        held[position] = images[int(rows[position])]

    with in_threads(read, range(len(rows))) as done:
        for _ in done:
            pass
    return HeldImages(rows, held)


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


@dataclasses.dataclass(frozen=True)
class Order:
    """In which order, and how turned, training images come.

    Attributes:
      rows: (n,) int64 rows of the table to train on.
      seed: of the order.
      dihedral: whether each showing is one of the 8 views; else they stay as they are.
      chances: (n,) float64 that sum to 1, with which each row is drawn for each place
        in an epoch, with replacement; None: each row comes once.
    """

    rows: np.ndarray
    seed: int
    dihedral: bool = False
    chances: np.ndarray | None = None
    # Threads read batches of the epoch under way and of the next.
    _drawn: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows (n,) int64 in a new order, and views (n,) int32 of them."""
        if (known := self._drawn.get(number)) is not None:
            return known
        rng = np.random.default_rng([self.seed, number])
        if self.chances is None:
            rows = rng.permutation(self.rows)
        else:
            rows = rng.choice(self.rows, len(self.rows), p=self.chances)
        views = np.zeros(len(rows), np.int32)
        if self.dihedral:
            views = rng.integers(NUM_VIEWS, size=len(rows), dtype=np.int32)
        self._drawn.pop(number - 2, None)
        self._drawn[number] = rows, views
        return rows, views


def sampling_chances(
    train: TrainConfig, label: np.ndarray, patient: np.ndarray
) -> np.ndarray | None:
    """Returns the chances of training images, as of `Order`.

    Args:
      train: says what is shown as often.
      label: (n,) of the images.
      patient: (n,) str.
    """
    if train.sampling is Sampling.IMAGES:
        return None
    chances = np.ones(len(label))
    if train.sampling is Sampling.PATIENTS:
        _, whose, count = np.unique(patient, return_inverse=True, return_counts=True)
        chances /= count[whose]
    classes = np.unique(label)
    for kind in classes:
        own = label == kind
        chances[own] /= len(classes) * chances[own].sum()
    return chances


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of batches that show every image once."""
    return math.ceil(num_images / batch_size)


def in_batches(values: np.ndarray, batch_size: int, fill: int) -> np.ndarray:
    """Returns values (n,) as (steps, batch_size), the last row filled up."""
    steps = steps_per_epoch(len(values), batch_size)
    whole = np.full(steps * batch_size, fill, values.dtype)
    whole[: len(values)] = values
    return whole.reshape(steps, batch_size)


def training_batches(
    images: Images,
    table: CellTable,
    order: Order,
    reading: Reading,
    *,
    start: int = 0,
    resident: bool = False,
) -> Iterator[Batch]:
    """Yields shuffled batches without end; each epoch is a new order of all rows.

    Args:
      images: what the network is given.
      table: the records of all cells.
      order: of the rows to train on.
      reading: how.
      start: the number of batches to leave out, those that a resumed run has used.
      resident: whether `images`, held, lie on the devices, so that a batch tells only
        which it has.
    """
    load = _LoadBatch(images, table, reading, order, resident)
    batches = grain.MapDataset.range(start, 2**62).map(load)
    loaded = batches.to_iter_dataset(_read_options())
    if reading.num_workers and not resident:
        workers = grain.MultiprocessingOptions(
            num_workers=reading.num_workers, per_worker_buffer_size=2
        )
        loaded = loaded.mp_prefetch(workers, worker_init_fn=_end_with_parent)
    return iter(loaded)


def evaluation_batches(
    images: Images,
    table: CellTable,
    rows: np.ndarray,
    reading: Reading,
    *,
    views: np.ndarray | None = None,
    resident: bool = False,
) -> Iterator[Batch]:
    """Yields batches in which every row stands exactly once, in order.

    Args:
      images: what the network is given.
      table: the records of all cells.
      rows: (n,) int64.
      reading: how.
      views: (n,) int32, of each row; None: the images as they are. With views, a row
        may stand there several times.
      resident: as of `training_batches`.
    """
    if views is None:
        views = np.zeros(len(rows), np.int32)
    load = _LoadBatch(images, table, reading, (rows, views), resident)
    batches = grain.MapDataset.range(steps_per_epoch(len(rows), reading.batch_size))
    return iter(batches.map(load).to_iter_dataset(_read_options()))


def read_ahead(read: Callable[[int], _Read], count: int) -> Iterator[_Read]:
    """Yields `read(0)`, `read(1)`, …: each is begun while the one before is used."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return iter(grain.MapDataset.range(count).map(read).to_iter_dataset(options))


def _read_options() -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=_PREFETCH, prefetch_buffer_size=_PREFETCH)


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
    """Reads this process' block of a batch, by its number, and pads it."""

    images: Images
    table: CellTable
    reading: Reading
    order: Order | tuple[np.ndarray, np.ndarray]
    resident: bool

    def map(self, element: int) -> Batch:
        reading = self.reading
        if isinstance(self.order, Order):
            number = steps_per_epoch(len(self.order.rows), reading.batch_size)
            epoch, step = divmod(int(element), number)
            rows, views = self.order.epoch(epoch)
        else:
            (rows, views), step = self.order, int(element)
        block = reading.batch_size // reading.num_processes
        first = step * reading.batch_size + reading.process * block
        end = min(first + block, (step + 1) * reading.batch_size)
        rows, views = rows[first:end], views[first:end]
        count = len(rows)
        batch = Batch(
            view=np.zeros(block, np.int32),
            label=np.zeros(block, np.int32),
            mask=np.zeros(block, np.float32),
            row=np.full(block, PADDING, np.int32),
        )
        batch["view"][:count] = views
        batch["label"][:count] = self.table.label[rows]
        batch["mask"][:count] = 1
        batch["row"][:count] = rows
        if self.resident:
            assert isinstance(self.images, HeldImages), "only those can be resident"
            batch["position"] = self.images.positions(batch["row"])
            return batch
        size = self.images.size
        batch["image"] = np.zeros((block, size, size, 3), np.uint8)
        for i, row in enumerate(rows.tolist()):
            batch["image"][i] = self.images[row]
        return batch
