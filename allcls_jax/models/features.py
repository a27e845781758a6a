"""What the frozen part of a network makes of each image, computed once.

A frozen backbone gives the same features in every epoch and every run. They are kept as
one memory-mapped array in a folder that is named after all they depend on; a second
array says which rows are there, so that a computation that was cut goes on where it
stopped, and a run over some of the images computes those only.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.typing import ArrayLike

from allcls_jax.data.packing import PackedCells
from allcls_jax.data.pipeline import Batch
from allcls_jax.errors import InputError
from allcls_jax.models.preprocessing import Preprocessing
from allcls_jax.models.vgg import VGG, Params, flatten_params, layer_table

# Raise it when the same key would give other numbers.
_FORMAT = 1


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
            # Files of zeros take up no space until a row is written.
            self._arrays = self._open()
        except OSError as error:
            raise InputError(
                f"{directory}: features cannot be kept there ({error}); give another "
                "--config.cache_dir, or --config.train.cache_features=false"
            ) from error

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns the features of a row: (m,) float32."""
        values, present = self._arrays
        assert present[row], f"features of row {row} were not computed"
        return values[row]

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files itself instead of getting a copy.
        return {name: v for name, v in self.__dict__.items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrays = self._open()

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Returns those of the rows whose features are still to be computed."""
        return rows[~self._arrays[1][rows].astype(bool)]

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Keeps features (n, m) of n rows; they count as present once on the disk."""
        array, present = self._arrays
        array[rows] = values
        array.flush()
        present[rows] = 1
        present.flush()

    def _open(self) -> tuple[np.memmap, np.memmap]:
        def array(name: str, kind: type, shape: tuple[int, ...]) -> np.memmap:
            path = self._directory / name
            with path.open("ab") as file:
                file.truncate(np.dtype(kind).itemsize * int(np.prod(shape)))
            return np.memmap(path, dtype=kind, mode="r+", shape=shape)

        rows = self._num_images
        return (
            array("features.f32", np.float32, (rows, *self.shape)),
            array("present.u8", np.uint8, (rows,)),
        )


def open_features(
    cells: PackedCells,
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
    dtype = np.dtype(backbone.dtype).name
    key = (_FORMAT, cells.stamp, backbone.layers, dtype, preprocessing, image_size)
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
