"""What the frozen part of a network makes of each image, computed once.

A frozen backbone gives the same features in every epoch and every run. They are kept as
one memory-mapped array in a folder that is named after all they depend on. A second
array holds a checksum of each row, 0 where there is none: a computation that was cut
goes on where it stopped, a run over some of the images computes those only, and a
damaged row is computed again.
"""

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax.typing import ArrayLike

from allcls_jax.data.copies import Cells
from allcls_jax.data.pipeline import Batch
from allcls_jax.errors import InputError
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.models.vgg import VGG, Params, flatten_params, layer_table

# Raise it when the same key would give other numbers.
_FORMAT = 1

_VALUES = "features.f32"
_CHECKS = "checksums.u32"


class Features:
    """Features of the cells of a pack, by row; an input of `pipeline`'s batches.

    Attributes:
      name: `features`, the key in a batch.
      shape: (m,), of one image.
      dtype: float32.
    """

    name: Literal["features"] = "features"
    dtype = np.dtype(np.float32)

    def __init__(self, directory: Path, num_images: int, width: int):
        """Opens the arrays, or makes them with no row in them.

        Args:
          directory: named after the features' key.
          num_images: rows, those of the pack's table.
          width: features of an image.

        Raises:
          InputError: if the folder cannot be written.
        """
        self.shape = (width,)
        self._directory = directory
        self._num_images = num_images
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._values, self._checks = self._open()
        except OSError as error:
            raise self._unusable(error) from error

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns the features of a row: (m,) float32."""
        assert self._checks[row], f"features of row {row} were not computed"
        return self._values[row]

    def __reduce__(self) -> tuple[type["Features"], tuple[Path, int, int]]:
        # Another process maps the files itself instead of getting a copy.
        return Features, (self._directory, self._num_images, self.shape[0])

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Returns those of the rows (n,) that are absent or damaged."""
        return np.array(
            [
                row
                for row in rows.tolist()
                if self._checks[row] != _checksum(self._values[row])
            ],
            dtype=np.int64,
        )

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Keeps features (n, m) of n rows; they count once they are on the disk.

        Raises:
          InputError: if there is no space left.
        """
        sums = np.array([_checksum(value) for value in values], np.uint32)
        try:
            # Not through the maps: where the disk is full they end the process.
            self._write(_VALUES, rows, np.ascontiguousarray(values, np.float32))
            self._write(_CHECKS, rows, sums)
        except OSError as error:
            raise self._unusable(error) from error

    def _write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        size = values[:1].nbytes
        with (self._directory / name).open("r+b") as file:
            for row, value in zip(rows.tolist(), values, strict=True):
                file.seek(row * size)
                file.write(value.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _open(self) -> tuple[np.memmap, np.memmap]:
        def array(name: str, kind: type, shape: tuple[int, ...]) -> np.memmap:
            path = self._directory / name
            with path.open("ab") as file:
                # Zeros take up no space until a row is written.
                file.truncate(np.dtype(kind).itemsize * math.prod(shape))
            return np.memmap(path, dtype=kind, mode="r", shape=shape)

        rows = self._num_images
        return (
            array(_VALUES, np.float32, (rows, *self.shape)),
            array(_CHECKS, np.uint32, (rows,)),
        )

    def _unusable(self, error: OSError) -> InputError:
        return InputError(
            f"{self._directory}: features cannot be kept there ({error}); give another "
            "--config.cache_dir, or --config.train.cache_features=false"
        )


def open_features(
    cells: Cells,
    backbone: VGG,
    params: Params,
    preprocessing: Preprocessing,
    *,
    image_size: int,
    cache_dir: Path,
) -> Features:
    """Opens the features of a pack under a frozen network; computes none.

    Args:
      cells: the pack.
      backbone: the layers up to the features.
      params: of the whole network; only the backbone's enter the key.
      preprocessing: what the weights expect.
      image_size: pixels.
      cache_dir: features lie in its folder `features`.
    """
    (width,) = layer_table(backbone.layers, image_size)[-1].shape
    key = (
        _FORMAT,
        (cells.size, cells.crop, *cells.table.sha256.tolist()),
        (backbone.layers, np.dtype(backbone.dtype).name, image_size),
        preprocessing,
        # Devices round differently, and some use fewer bits than they are given.
        jax.default_backend(),
    )
    digest = hashlib.sha256(repr(key).encode())
    used = {layer.name for layer in backbone.layers}
    for name, array in sorted(flatten_params(params).items()):
        if name.partition("/")[0] in used:
            digest.update(name.encode())
            digest.update(np.asarray(array).tobytes())
    return Features(cache_dir / "features" / digest.hexdigest()[:24], len(cells), width)


def compute(
    features: Features,
    batches: Iterator[Batch],
    forward: Callable[[Batch], tuple[ArrayLike, ArrayLike]],
    advance: Callable[[int], None],
) -> None:
    """Computes the features of every image in the batches and keeps them.

    Args:
      features: gets them.
      batches: of images.
      forward: batch → features (n, m) float32 and rows (n,) int32, -1 for padding.
      advance: is told the number of images just kept.
    """

    def keep(values: ArrayLike, row: ArrayLike) -> None:
        real = np.asarray(row) >= 0
        features.put(np.asarray(row)[real], np.asarray(values)[real])
        advance(int(real.sum()))

    pending: tuple[ArrayLike, ArrayLike] | None = None
    for batch in batches:
        following = forward(batch)
        # The device is at work on this batch while the last one is written.
        if pending is not None:
            keep(*pending)
        pending = following
    if pending is not None:
        keep(*pending)


def _checksum(values: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes; never 0, which means an absent row."""
    return zlib.crc32(np.ascontiguousarray(values, np.float32).tobytes()) or 1
