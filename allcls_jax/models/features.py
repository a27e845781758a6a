"""What the frozen part of a network makes of each image and view, computed once.

A frozen backbone gives the same features in every epoch and every run. They are kept in
a folder named after all that they depend on but the images, and found there by the hash
of the image and the view of it. A computation that was cut goes on where it stopped,
new images are added, and what is damaged is computed again.
"""

import contextlib
import hashlib
import math
import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.data import stain
from allcls_jax.data.threads import in_threads
from allcls_jax.errors import InputError
from allcls_jax.locking import locked
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.models.vgg import (
    VGG,
    BlockAverages,
    GlobalAveragePool,
    Params,
    flatten_params,
    layer_table,
)

# Raise it when the same key would give other numbers.
_FORMAT = 2

_VALUES = "values"
_INDEX = "index"

# One for each slot of the values: whose features they are, and a checksum.
_RECORD = np.dtype([("image", "V32"), ("view", "u1"), ("check", "<u4")])

# Bytes that are read, or wait to be written, at a time.
_BLOCK = 64 * 2**20

Key = tuple[bytes, int]  # sha256 of an image, view of it from 0 to 7


class FeatureStore:
    """Features in a folder, by image and view; used by one thread.

    Attributes:
      shape: (m,), of one image in one view.
      dtype: of the values; what the backbone computes in, so that nothing is lost.
    """

    def __init__(self, directory: Path, width: int, dtype: np.dtype):
        """Opens the folder, or makes it with nothing in it.

        Args:
          directory: named after all that features depend on but the image.
          width: features of an image.
          dtype: of a feature.

        Raises:
          InputError: if the folder cannot be written.
        """
        self.shape = (width,)
        self.dtype = dtype
        self._directory = directory
        self._row_bytes = width * dtype.itemsize
        self._slots: dict[Key, int] = {}
        self._checks = np.zeros(0, np.uint32)
        with self._explained():
            directory.mkdir(parents=True, exist_ok=True)
            for name in (_VALUES, _INDEX):
                (directory / name).touch()
        self._read_index()

    def missing(self, keys: Sequence[Key]) -> np.ndarray:
        """Returns which of the keys (n,) are absent or damaged: (k,) int64."""
        self._read_index()
        slots = np.array([self._slots.get(key, -1) for key in keys], np.int64)
        whole = slots >= 0
        there = np.flatnonzero(whole)

        def damaged(block: np.ndarray) -> np.ndarray:
            values = self._read(slots[block])
            sums = [_checksum(row) for row in values]
            return block[np.array(sums, np.uint32) != self._checks[slots[block]]]

        with in_threads(damaged, self._blocks(there)) as found:
            for block in found:
                whole[block] = False
        return np.flatnonzero(~whole)

    def read(self, keys: Sequence[Key]) -> np.ndarray:
        """Returns features (n, m) of keys that are not missing, unchecked."""
        self._read_index()
        slots = [self._slots.get(key, -1) for key in keys]
        assert min(slots, default=0) >= 0, "not all of these features were computed"
        slots = np.array(slots, np.int64)
        values = np.empty((len(keys), *self.shape), self.dtype)
        for block in self._blocks(np.arange(len(keys))):
            values[block] = self._read(slots[block])
        return values

    @contextlib.contextmanager
    def adding(self) -> Iterator["_Writer"]:
        """Yields what keeps features in the background; all are kept at the end.

        Raises:
          InputError: if there is no space left.
        """
        writer = _Writer(self._add)
        try:
            yield writer
        finally:
            writer.close()
        with self._explained():
            writer.check()

    def _add(self, keys: Sequence[Key], values: np.ndarray) -> None:
        """Keeps features (n, m); they count once they are on the disk."""
        values = np.ascontiguousarray(values, self.dtype)
        with locked(
            self._directory / ".lock",
            waiting=f"waiting for another process that writes {self._directory}",
        ):
            self._read_index()  # another process may have added some
            known = len(self._checks)
            fresh = [key for key in dict.fromkeys(keys) if key not in self._slots]
            slots = {key: self._slots[key] for key in keys if key in self._slots} | {
                key: known + i for i, key in enumerate(fresh)
            }
            chosen = [slots[key] for key in keys]
            records = np.zeros(len(keys), _RECORD)
            records["image"] = np.array([image for image, _ in keys], "V32")
            records["view"] = [view for _, view in keys]
            records["check"] = [_checksum(row) for row in values]
            self._write(_VALUES, chosen, values)
            self._write(_INDEX, chosen, records)
            self._read_index()
            self._checks[chosen] = records["check"]

    def _write(self, name: str, slots: Sequence[int], rows: np.ndarray) -> None:
        size = rows[:1].nbytes
        with (self._directory / name).open("r+b") as file:
            for slot, row in zip(slots, rows, strict=True):
                file.seek(slot * size)
                file.write(row.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _read_index(self) -> None:
        """Takes note of the records behind those that are known."""
        known = len(self._checks)
        with (self._directory / _INDEX).open("rb") as file:
            file.seek(known * _RECORD.itemsize)
            data = file.read()
        # A record cut short was being written when a run was killed.
        records = np.frombuffer(data, _RECORD, len(data) // _RECORD.itemsize)
        pairs = zip(records["image"].tolist(), records["view"].tolist(), strict=True)
        self._slots |= {key: known + slot for slot, key in enumerate(pairs)}
        self._checks = np.concatenate([self._checks, records["check"]])

    def _read(self, slots: np.ndarray) -> np.ndarray:
        """Returns what stands in slots (n,): (n, m); zeros behind the file's end."""
        values = np.zeros((len(slots), *self.shape), self.dtype)
        size = self._row_bytes
        # Neighbours in the file are read in one go. Not through a map: its pages would
        # count as memory of this process.
        cuts = np.flatnonzero(np.diff(slots) != 1) + 1
        with (self._directory / _VALUES).open("rb", buffering=0) as file:
            for begin, end in zip(
                [0, *cuts.tolist()], [*cuts.tolist(), len(slots)], strict=True
            ):
                if begin < end:
                    target = memoryview(values[begin:end].view(np.uint8).data).cast("B")
                    offset = int(slots[begin]) * size
                    file.seek(offset)
                    done = 0
                    while read := file.readinto(target[done:]):
                        done += read
        return values

    def _blocks(self, indices: np.ndarray) -> list[np.ndarray]:
        each = max(1, _BLOCK // self._row_bytes)
        return [indices[i : i + each] for i in range(0, len(indices), each)]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._directory}: features cannot be kept there ({error}); give "
                "another --config.cache_dir, or --config.train.cache_features=false"
            ) from error


class _Writer:
    """Keeps features in a thread of its own, so that no device waits for a disk."""

    def __init__(self, add: Callable[[Sequence[Key], np.ndarray], None]):
        self._add = add
        self._error: BaseException | None = None
        # Bounded: what waits is in memory.
        self._waiting: queue.Queue[tuple[Sequence[Key], np.ndarray] | None]
        self._waiting = queue.Queue(maxsize=16)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def put(self, keys: Sequence[Key], values: np.ndarray) -> None:
        """Takes features (n, m) of n keys."""
        if self._error is None:
            self._waiting.put((keys, values))

    def close(self) -> None:
        """Returns when all that was taken is kept, or could not be."""
        self._waiting.put(None)
        self._thread.join()

    def check(self) -> None:
        """Raises what kept features from being kept."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (taken := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._add(*taken)
                except BaseException as error:  # raised where it is looked at
                    self._error = error


def num_bytes(fixed: VGG, image_size: int) -> int:
    """Returns the size of an image's features in one view."""
    return _width(fixed, image_size) * _dtype(fixed).itemsize


def open_store(
    fixed: VGG,
    params: Params,
    preprocessing: Preprocessing,
    *,
    image_size: int,
    source: tuple[int | None, ...],
    cache_dir: Path,
) -> FeatureStore:
    """Opens the store of a frozen network's features; computes none.

    Args:
      fixed: the layers that make the features.
      params: of the whole network; only those of these layers enter the key.
      preprocessing: what the weights expect.
      image_size: pixels.
      source: what else has made the image out of its file: pixels stored and cropped.
      cache_dir: features lie in its folder `features`.
    """
    key = (
        _FORMAT,
        source,
        (fixed.layers, np.dtype(fixed.dtype).name, image_size),
        preprocessing,
        # Devices round differently, and some use fewer bits than they are given.
        jax.default_backend(),
        *((stain.STANDARD,) if preprocessing.normalise_stain else ()),
    )
    digest = hashlib.sha256(repr(key).encode())
    used = {layer.name for layer in fixed.layers}
    for name, array in sorted(flatten_params(params).items()):
        if name.partition("/")[0] in used:
            digest.update(name.encode())
            digest.update(np.asarray(array).tobytes())
    folder = cache_dir / "features" / digest.hexdigest()[:24]
    return FeatureStore(folder, _width(fixed, image_size), _dtype(fixed))


def _width(fixed: VGG, image_size: int) -> int:
    """Returns the number of features of an image."""
    return math.prod(layer_table(fixed.layers, image_size)[-1].shape)


def _dtype(fixed: VGG) -> np.dtype:
    """Returns the type in which features lose nothing."""
    # An average over places has more digits than what it is taken of.
    averaged = isinstance(fixed.layers[-1], GlobalAveragePool | BlockAverages)
    return np.dtype(jnp.float32 if averaged else fixed.dtype)


def _checksum(row: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes."""
    return zlib.crc32(row.view(np.uint8).data)
