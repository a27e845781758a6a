"""Which pictures show the same cell, also turned, mirrored, shifted or encoded anew.

Two looks at every cell. The coarse one, the cell's box on a small grid, tells quickly
which pairs may be twins: scikit-learn's neighbours search it, in eight views. The fine
one, the texture inside the cell, decides: round, dark cells are coarsely alike, and no
two of them have the same texture. A picture without texture is nobody's twin, for it
would be everybody's.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from allcls_jax import terminal
from allcls_jax.data import threads

# Root mean square difference of two coarse looks, grey levels of 255. It bounds the
# work: of the pairs just beyond it, one in thousands is of the same cell.
DISTANCE = 10.0

# Correlation of two fine looks, at most 1. On C-NMC 2019 no pair of different cells
# that are coarsely alike exceeds 0.41, and no group of patients hangs by under 0.76.
AGREEMENT = 0.5

GRID = 32  # pixels of the coarse look
PATCH = 64  # pixels of the fine look

# Pixels. No picture of one cell is as large as twice that: of such a picture every
# second, third … pixel will do.
_LARGEST = 1024
# Brightest channel of the faintest pixel that counts for the box; what JPEG leaves
# beside a cell is darker.
_BRIGHT = 24
# Sides of the fine look, in square roots of the cell's area; a disc is 1.13 wide.
_REACH = 1.6
# Pixels of the fine look: what is coarser than this is shading and not texture, this
# far inside the outline it counts, and so far two looks may lie apart.
_TEXTURE, _RIM, _SHIFT = 2.0, 4, 5
_SIDE = 72  # at least PATCH + _SHIFT, and quickly transformed
# Standard deviation of texture, grey levels, below which there is only noise, and
# pixels of it, of some 900 in a round cell, below which chance correlates.
_FLAT, _LEAST = 0.5, 250
# Standard deviations of texture beyond which it counts no further: one bright speck
# would outweigh all else, and any two cells with a speck would be alike.
_SPECK = 3.0

# Of the coarse look: directions that are searched, pictures from which they are taken.
_DIRECTIONS, _SAMPLE = 96, 1500
# Most alike pictures of each: in one view by these directions, in all views by the
# coarse look; only these are compared finely. Pictures that are all alike would
# otherwise make as many pairs as their number's square.
_MOST, _NEAREST = 500, 100
_QUERIES, _PAIRS, _THREADS = 512, 1024, 4  # worked on at a time: bound the memory

# (quarter turns, mirrored) of all eight views of a picture, the plain one first.
VIEWS = tuple((turns, mirror) for mirror in (False, True) for turns in range(4))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Two looks at one cell."""

    coarse: np.ndarray  # (32, 32, 3) float32, grey levels
    fine: np.ndarray | None  # (64, 64) float16 of norm 1; None without texture


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Two pictures of the same cell, by their numbers; `first` < `second`."""

    first: int
    second: int
    distance: float  # of the coarse looks, grey levels
    agreement: float  # of the fine looks, a correlation
    view: tuple[int, bool]  # that of the first which looks like the second


def sketch(image: np.ndarray) -> Sketch | None:
    """Returns the looks at a cell, or None where nothing is brighter than background.

    Where the cell lies in the picture, and how large it is, makes no difference.

    Args:
      image: (height, width, 3) uint8, its background set to 0.
    """
    step = max(1, *(side // _LARGEST for side in image.shape[:2]))
    image = image[::step, ::step]
    level = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    bright = level > _BRIGHT
    rows, columns = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cell, bright = image[box], bright[box]
    coarse = _means(
        cell,
        np.linspace(0, cell.shape[0], GRID + 1),
        np.linspace(0, cell.shape[1], GRID + 1),
    )
    return Sketch(coarse.astype(np.float32), _fine(cell, bright))


def find_twins(
    sketches: Sequence[Sketch],
    *,
    distance: float = DISTANCE,
    agreement: float = AGREEMENT,
) -> list[Twins]:
    """Returns the pairs that show the same cell, by their numbers.

    Args:
      sketches: n cells.
      distance: largest difference of the coarse looks, grey levels, above 0.
      agreement: smallest correlation of the fine looks, in (0, 1].
    """
    numbers = [i for i, one in enumerate(sketches) if one.fine is not None]
    if len(numbers) < 2:
        return []
    coarse = np.stack([sketches[i].coarse for i in numbers])
    fine = np.stack([f for f in (sketches[i].fine for i in numbers) if f is not None])
    starts = range(0, len(coarse), _QUERIES)
    best: dict[tuple[int, int], Twins] = {}
    # The threads of BLAS wait for each other at every step, ten times as long as they
    # compute where another program wants the processors: ours do not.
    with threadpool_limits(1), terminal.track("comparing", len(coarse), "cells") as add:
        alike = _alike(coarse, distance)

        def compare(start: int) -> tuple[_Pairs, np.ndarray]:
            pairs = alike(start)
            return pairs, _agreements(fine, pairs)

        with threads.in_threads(
            compare, starts, most=_THREADS, initializer=lambda: threadpool_limits(1)
        ) as compared:
            for start, (pairs, agreements) in zip(starts, compared, strict=True):
                for row in np.flatnonzero(agreements >= agreement).tolist():
                    twins = Twins(
                        first=numbers[pairs.first[row]],
                        second=numbers[pairs.second[row]],
                        distance=float(pairs.distance[row]),
                        agreement=float(agreements[row]),
                        view=VIEWS[pairs.view[row]],
                    )
                    key = twins.first, twins.second
                    if key not in best or best[key].agreement < twins.agreement:
                        best[key] = twins
                add(min(_QUERIES, len(coarse) - start))
    return [best[key] for key in sorted(best)]


def turned(image: np.ndarray, view: tuple[int, bool]) -> np.ndarray:
    """Returns a view of a picture (height, width, …)."""
    return _turned(image[np.newaxis], view)[0]


class _Pairs(NamedTuple):
    """Columns of m pairs of cells: int64 numbers, of which `first` < `second`."""

    first: np.ndarray
    second: np.ndarray
    view: np.ndarray  # number in `VIEWS` of the first's view
    distance: np.ndarray  # float32, grey levels

    def take(self, rows: np.ndarray) -> "_Pairs":
        return _Pairs(*(column[rows] for column in self))


def _turned(images: np.ndarray, view: tuple[int, bool]) -> np.ndarray:
    """Returns the same view of many pictures (n, height, width, …)."""
    turns, mirror = view
    return np.rot90(images[:, :, ::-1] if mirror else images, turns, axes=(1, 2))


def _means(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns means over a grid of equal rectangles, which need not be whole pixels.

    Beside the picture there is 0. Of a turned picture the means are the turned means.

    Args:
      image: (height, width, …).
      rows: (k + 1,) float64, where the rectangles begin and the last ends.
      columns: (l + 1,) likewise.

    Returns:
      (k, l, …) float64.
    """
    for edges in (rows, columns):
        length = len(image)
        sums = np.zeros((length + 2, *image.shape[1:]))
        np.cumsum(image, axis=0, out=sums[1:-1])
        sums[-1] = sums[-2]
        at = np.clip(edges, 0, length)
        low = at.astype(np.int64)
        part = (at - low).reshape(-1, *(1,) * (image.ndim - 1))
        upto = sums[low] + part * (sums[low + 1] - sums[low])
        # Now the columns are in front, and after the second time the rows again.
        image = np.diff(upto, axis=0).swapaxes(0, 1) / (edges[1] - edges[0])
    return image


def _fine(cell: np.ndarray, bright: np.ndarray) -> np.ndarray | None:
    """Returns the texture about the cell's centre of mass, or None without any.

    Size and place are taken from area and centre: of two copies of a cell, one may have
    a shred that the other lacks, which would move and stretch their boxes.
    """
    area = np.count_nonzero(bright)
    edges = []
    for axis in (1, 0):
        weights = np.count_nonzero(bright, axis=axis)
        centre = np.average(np.arange(len(weights)) + 0.5, weights=weights)
        reach = _REACH * np.sqrt(area) / 2
        edges.append(np.linspace(centre - reach, centre + reach, PATCH + 1))
    # A sum of planes is several times faster than cell.sum(axis=-1).
    red, green, blue = (cell[..., i].astype(np.float32) for i in range(3))
    grey = _means((red + green + blue) / 3, *edges)
    inside = _means(bright, *edges)
    local = ndimage.gaussian_filter(np.stack([grey, inside]), (0, _TEXTURE, _TEXTURE))
    whole = ndimage.minimum_filter(inside > 0.5, 2 * _RIM + 1, mode="constant")
    texture = np.where(whole, grey - local[0] / np.maximum(local[1], 1e-3), 0)
    count = np.count_nonzero(whole)
    spread = np.linalg.norm(texture) / np.sqrt(max(count, 1))
    if count < _LEAST or spread < _FLAT:
        return None
    texture = np.clip(texture, -_SPECK * spread, _SPECK * spread)
    return (texture / np.linalg.norm(texture)).astype(np.float16)


def _alike(coarse: np.ndarray, distance: float) -> Callable[[int], _Pairs]:
    """Returns a function that gives the pairs that are coarsely alike in any view.

    Of all pairs it gives those whose first cell is one of the `_QUERIES` from the
    number that it is called with.

    Args:
      coarse: (n, 32, 32, 3) float32, n at least 2.
      distance: largest difference, grey levels.
    """
    flat = coarse.reshape(len(coarse), -1)
    scale = np.sqrt(flat.shape[1])  # from the mean square to the square's sum
    project = _projection(coarse)
    neighbours = NearestNeighbors(radius=1.001 * distance * scale, algorithm="brute")
    neighbours.fit(project(flat))

    def pairs_from(start: int) -> _Pairs:
        queries = coarse[start : start + _QUERIES]
        found = []
        for number, view in enumerate(VIEWS):
            views = _turned(queries, view).reshape(len(queries), -1)
            near = [
                rows[np.argpartition(away, _MOST)[:_MOST]]
                if len(rows) > _MOST
                else rows
                for away, rows in zip(
                    *neighbours.radius_neighbors(project(views)), strict=True
                )
            ]
            query = np.repeat(np.arange(len(queries)), [len(rows) for rows in near])
            other = np.concatenate(near)
            # The other half of the pairs comes with the other's inverse views.
            later = other > start + query
            query, other = query[later], other[later]
            exact = _differences(views, query, flat, other) / scale
            kept = exact <= distance
            found.append(
                _Pairs(
                    start + query[kept],
                    other[kept],
                    np.full(np.count_nonzero(kept), number),
                    exact[kept],
                )
            )
        return _nearest(_Pairs(*map(np.concatenate, zip(*found, strict=True))))

    return pairs_from


def _projection(coarse: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a map of (k, 3072) to few dimensions that brings no two pictures apart.

    So every pair within a distance is also within it after the map.
    """
    step = -(-len(coarse) // _SAMPLE)
    sample = [
        turned(one, VIEWS[i % len(VIEWS)]).ravel()
        for i, one in enumerate(coarse[::step])
    ]
    mean = np.mean(sample, axis=0)
    directions = min(_DIRECTIONS, len(sample))
    _, _, basis = randomized_svd(np.array(sample) - mean, directions, random_state=0)
    return lambda rows: (rows - mean) @ basis.T


def _differences(
    some: np.ndarray, rows: np.ndarray, others: np.ndarray, with_rows: np.ndarray
) -> np.ndarray:
    """Returns the distances (m,) of `some[rows]` and `others[with_rows]`."""
    result = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        away = some[rows[part]] - others[with_rows[part]]
        result[part] = np.sqrt(np.einsum("ij,ij->i", away, away))
    return result


def _nearest(pairs: _Pairs) -> _Pairs:
    """Returns the pairs without those beyond the `_NEAREST` of each first cell."""
    order = np.lexsort((pairs.distance, pairs.first))
    first = pairs.first[order]
    rank = np.arange(len(first)) - np.searchsorted(first, first)
    return pairs.take(order[rank < _NEAREST])


def _agreements(fine: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """Returns the correlation (m,) of the fine looks of each pair.

    It is the largest over shifts by a few pixels: the two masks may differ a little.
    """
    result = np.empty(len(pairs.first), np.float32)
    shifts = np.r_[: _SHIFT + 1, _SIDE - _SHIFT : _SIDE]
    for number, view in enumerate(VIEWS):
        rows = np.flatnonzero(pairs.view == number)
        for start in range(0, len(rows), _PAIRS):
            part = rows[start : start + _PAIRS]
            one, other = (
                np.fft.rfft2(looks.astype(np.float32), (_SIDE, _SIDE))
                for looks in (
                    _turned(fine[pairs.first[part]], view),
                    fine[pairs.second[part]],
                )
            )
            product = np.fft.irfft2(one * np.conj(other), (_SIDE, _SIDE))
            result[part] = product[:, shifts[:, np.newaxis], shifts].max(axis=(1, 2))
    return np.minimum(result, 1)  # rounding
