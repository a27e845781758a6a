"""Hand-made figures of each image, for the baselines; computed once and kept.

Three kinds, side by side in one row: the stain of the cell, what lies outside the cell,
and the classical figures of texture and shape. All of them are of one image alone: no
other image, label or patient enters.
"""

import hashlib
import io
import os
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import ndimage

from allcls_jax import terminal
from allcls_jax.atomic import write_atomically
from allcls_jax.data.cells import CellTable
from allcls_jax.errors import InputError
from allcls_jax.evaluation.baselines import classical

# Raise it when an image would come out with other figures.
_FORMAT = 1

_CHANNELS = ("red", "green", "blue")
_UNFRAMED = "frame is not black"
_TILES = 3  # the background is looked at in so many rows and columns

# Kind → what its figures are called.
NAMES = {
    "stain": tuple(f"optical density, {name}" for name in _CHANNELS),
    "background": (
        *(f"mean, {name}" for name in _CHANNELS),
        *(f"deviation, {name}" for name in _CHANNELS),
        "share that is not black",
        _UNFRAMED,
        *(f"mean, tile {1 + tile}" for tile in range(_TILES**2)),
    ),
    "classical": classical.NAMES,
}

# The figures of an image.
WIDTH = sum(map(len, NAMES.values()))


class Cells(Protocol):
    """Images by row of a table: a pack, or turned copies from it."""

    @property
    def table(self) -> CellTable:
        """One row an image."""
        ...

    @property
    def size(self) -> int:
        """Height and width of the images, pixels."""
        ...

    @property
    def crop(self) -> int | None:
        """Side of the centre square that was cut out before resizing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns an image: (size, size, 3) uint8, RGB."""
        ...


def describe(image: np.ndarray) -> np.ndarray:
    """Returns all figures of one image, in the order of `NAMES`: (m,) float64.

    Args:
      image: (h, w, 3) uint8 RGB, a cell on black.
    """
    segmentation = classical.segment(image)
    return np.concatenate(
        [
            stain(image, segmentation.cell),
            background(image),
            classical.describe(image, segmentation),
        ]
    )


def of_kind(values: np.ndarray, kind: str) -> np.ndarray:
    """Returns the figures of one kind: (n, m) → (n, k)."""
    names = list(NAMES)
    start = sum(len(NAMES[name]) for name in names[: names.index(kind)])
    return values[:, start : start + len(NAMES[kind])]


def stain(image: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Returns the mean optical density of a cell: (3,) float64, red, green, blue.

    Args:
      image: (h, w, 3) uint8 RGB.
      cell: (h, w) bool; its outermost pixels, mixed with the black beside them, are
        left out. Without any pixel the density is 0.
    """
    inner = image[classical.interior(cell)]
    if not len(inner):
        return np.zeros(3)
    return classical.optical_density(inner).mean(axis=0, dtype=np.float64)


def background(image: np.ndarray) -> np.ndarray:
    """Returns figures of what lies outside the cell, which ought to be nothing.

    The cell is blanked with a margin, and what is left is averaged per pixel: neither
    the size nor the outline of the cell enters. So a class can be told from these
    figures only by something that preparation ought to have removed.

    Args:
      image: (h, w, 3) uint8 RGB.

    Returns:
      (17,) float64: mean and standard deviation of each channel; the share of pixels
      that are not black; whether most of the picture's outermost pixels are brighter
      than a background can be; and the mean in each of 3 x 3 tiles, which is that of
      all tiles where the cell fills one. All 0 where the background is black.
    """
    level = classical.brightest(image)
    edge = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    unframed = float(np.mean(edge > classical.DARK) > 0.5)
    outside = ~_blanked(level)
    if not level[outside].any():  # nearly always; only faster
        values = np.zeros(len(NAMES["background"]))
        values[NAMES["background"].index(_UNFRAMED)] = unframed
        return values
    seen = image[outside].astype(np.float64)
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    rows, columns = (np.arange(length) * _TILES // length for length in outside.shape)
    tile = (rows[:, np.newaxis] * _TILES + columns)[outside]
    counts = np.bincount(tile, minlength=_TILES**2)
    sums = np.bincount(tile, seen.mean(axis=1), minlength=_TILES**2)
    return np.concatenate(
        [
            mean,
            deviation,
            [np.count_nonzero(level[outside]) / len(seen)],
            [unframed],
            np.where(counts > 0, sums / np.maximum(counts, 1), mean.mean()),
        ]
    )


def open_descriptors(cells: Cells, rows: np.ndarray, *, cache_dir: Path) -> np.ndarray:
    """Returns the figures of some cells, computing and keeping those missing.

    Args:
      cells: of which the images are.
      rows: (n,) int64 rows of its table.
      cache_dir: figures lie in its folder `descriptors`, under a name that changes
        with the images, their size and the way they are described.

    Returns:
      (n, m) float64; `of_kind` tells the columns apart.

    Raises:
      InputError: if they cannot be kept there.
    """
    key = (_FORMAT, NAMES, cells.size, cells.crop, *cells.table.sha256.tolist())
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:24]
    path = cache_dir / "descriptors" / f"{name}.npz"
    values = _read(path, len(cells))
    missing = rows[np.isnan(values[rows, 0])]
    if len(missing):
        try:
            with terminal.track("descriptors", len(missing), "images") as advance:
                for row, found in _described(cells, missing):
                    values[row] = found
                    advance(1)
        finally:
            # What was computed before an interruption is not computed again.
            _write(path, values)
    return values[rows]


def _described(cells: Cells, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each row with its figures, some being computed ahead."""
    threads = min(8, os.cpu_count() or 1)
    pending: deque[tuple[int, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for row in rows.tolist():
                pending.append((row, pool.submit(_describe_row, cells, row)))
                if len(pending) >= 8 * threads:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()


def _describe_row(cells: Cells, row: int) -> np.ndarray:
    return describe(cells[row])


def _blanked(level: np.ndarray) -> np.ndarray:
    """Returns where the cell is, and a margin around it: (h, w) bool.

    Args:
      level: (h, w) uint8, each pixel's brightest channel.
    """
    # Resizing blurs the outline, the more the larger the picture.
    reach = max(3, max(level.shape) // 64)
    side = 2 * reach + 1
    wide = ndimage.maximum_filter(level > classical.DARK, side, mode="constant")
    return classical.filled(classical.largest_region(wide))


def _read(path: Path, number: int) -> np.ndarray:
    """Returns what is kept (number, m); NaN where nothing is, or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            values = kept["values"]  # a damaged file fails its checksum
        if values.shape == (number, WIDTH) and values.dtype == np.float64:
            return values
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return np.full((number, WIDTH), np.nan)


def _write(path: Path, values: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.savez_compressed(file, values=values)
        write_atomically(path, file.getvalue())
    except OSError as error:
        raise InputError(
            f"{path}: descriptors cannot be kept there ({error}); make room, or give "
            "another --cache"
        ) from error
