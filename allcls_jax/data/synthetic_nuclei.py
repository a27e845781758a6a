"""Where nuclei lie in a drawn field: cells of `synthetic`, placed beside one another.

Some are laid against another one so that a few pixels overlap; all others keep a gap.
"""

import dataclasses

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.cell_mask import box_of

Window = tuple[slice, slice]  # rows and columns of the field


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PlacedNucleus:
    """One nucleus where it lies in a field; its arrays are of `window` alone.

    Attributes:
      cell: number of the drawn cell.
      window: rows and columns of the field.
      inside: (h, w) bool, its pixels.
      share: (h, w) float32 in [0, 1], soft at the outline.
      density: (h, w, 3) float32, optical density, natural log.
    """

    cell: int
    window: Window
    inside: np.ndarray
    share: np.ndarray
    density: np.ndarray

    def within(self, window: Window, shape: tuple[int, ...]) -> np.ndarray:
        """Returns its pixels within a window of a field of this shape, bool."""
        whole = np.zeros(shape, bool)
        whole[self.window] = self.inside
        return whole[window]


def place_nuclei(
    rng: Generator,
    config: SyntheticConfig,
    shape: tuple[int, int],
    *,
    scale: float,
    count: int,
    touching: float,
) -> list[PlacedNucleus]:
    """Returns the nuclei of a field, some laid against another.

    Args:
      rng: draws which cells, and where.
      config: of the drawn cells.
      shape: height and width of the field, pixels.
      scale: field pixels per pixel of a drawn cell.
      count: how many at most; fewer where there is no room.
      touching: share that is laid against another nucleus, in [0, 1].
    """
    taken = np.zeros(shape, bool)
    near = np.zeros(shape, bool)
    placed: list[PlacedNucleus] = []
    for _ in range(count):
        cell = int(rng.integers(config.num_images))
        tile = _tile(config, cell, scale, int(rng.integers(4)))
        inside = tile[0] > 0.5
        against = bool(placed) and rng.random() < touching
        at = None
        for _ in range(_TRIES):
            if against:
                start = placed[int(rng.integers(len(placed)))]
                at = _beside(rng, taken, start, inside)
            else:
                centre = rng.uniform((0, 0), shape)
                at = _corner(centre, inside)
                if _shared(near, inside, at) or not _shared(~near, inside, at):
                    at = None
            if at is not None:
                break
        if at is None:
            continue
        nucleus = _cut(cell, tile, at, shape)
        placed.append(nucleus)
        taken[nucleus.window] |= nucleus.inside
        reach = int(np.ceil(_GAP * scale)) + 1
        around = around_window(nucleus.window, reach, shape)
        near[around] = distance_to(taken[around]) <= _GAP * scale
    return placed


def meeting(
    at: tuple[int, int], size: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Window, Window]:
    """Returns where a tile at a corner lies in the field, and which part of it does."""
    window, part = [], []
    for start, length, limit in zip(at, size, shape, strict=True):
        first, last = max(start, 0), max(0, min(start + length, limit))
        window.append(slice(first, max(first, last)))
        part.append(slice(first - start, max(first, last) - start))
    return (window[0], window[1]), (part[0], part[1])


def around_window(window: Window, reach: int, shape: tuple[int, ...]) -> Window:
    """Returns a window widened by `reach` pixels, as far as the field goes."""
    rows, columns = (
        slice(max(0, part.start - reach), min(length, part.stop + reach))
        for part, length in zip(window, shape, strict=True)
    )
    return rows, columns


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Returns each pixel's distance to the nearest one of a mask; infinite if none."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask))


def _beside(
    rng: Generator,
    taken: np.ndarray,
    start: PlacedNucleus,
    inside: np.ndarray,
) -> tuple[int, int] | None:
    """Returns where a nucleus just touches the one it starts from, or None."""
    rows, columns = np.nonzero(start.inside)
    first = np.array([rows.mean(), columns.mean()])
    first += [start.window[0].start, start.window[1].start]
    turn = rng.uniform(-np.pi, np.pi)
    heading = np.array([np.sin(turn), np.cos(turn)])
    allowed = _OVERLAP * rng.random() * min(inside.sum(), start.inside.sum())
    reach = np.hypot(*start.inside.shape) + np.hypot(*inside.shape)
    at = None
    for distance in np.arange(reach / 2, 0, -1.0):
        corner = _corner(first + distance * heading, inside)
        shared = _shared(taken, inside, corner)
        if shared > allowed:
            break
        at = corner if shared else at
    middle = None if at is None else np.array(at) + np.array(inside.shape) / 2
    if at is None or middle is None or not _within(middle, taken.shape):
        return None
    others = taken.copy()
    others[start.window] &= ~start.inside
    return None if _shared(others, inside, at) else at


def _within(point: np.ndarray, shape: tuple[int, ...]) -> bool:
    return bool(0 <= point[0] < shape[0] and 0 <= point[1] < shape[1])


def _tile(
    config: SyntheticConfig, cell: int, scale: float, turns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns share (h, w) and density (h, w, 3) of a drawn cell at field scale."""
    image = np.rot90(synthetic.draw(config, cell), turns)
    mask = image.max(axis=-1) > 0
    depth = distance_to(~mask)
    core = distance_to(depth > _SHRED) <= _SHRED
    # Then the bites are closed, away from the frame.
    core = distance_to(distance_to(core) > _SHRED) > _SHRED
    nearest = ndimage.distance_transform_edt(
        ~(mask & core), return_distances=False, return_indices=True
    )
    assert nearest is not None  # it was asked for
    size = max(3, round(synthetic.SIZE * scale))
    colour = transforms.resize(image[tuple(nearest)], size)
    share = transforms.resize(
        np.repeat(255 * core[..., None].astype(np.uint8), 3, -1), size
    )
    box = box_of(share[..., 0] > 0)
    density = -np.log((colour[box].astype(np.float32) + 0.5) / 255.5)
    return share[box][..., 0].astype(np.float32) / 255, density


def _cut(
    cell: int,
    tile: tuple[np.ndarray, np.ndarray],
    at: tuple[int, int],
    shape: tuple[int, int],
) -> PlacedNucleus:
    """Returns a tile as a nucleus of the field, cut at its edges."""
    window, part = meeting(at, tile[0].shape, shape)
    share, density = tile[0][part], tile[1][part]
    return PlacedNucleus(cell, window, share > 0.5, share, density)


def _corner(centre: np.ndarray, inside: np.ndarray) -> tuple[int, int]:
    top, left = np.rint(centre - np.array(inside.shape) / 2).astype(int)
    return int(top), int(left)


def _shared(taken: np.ndarray, inside: np.ndarray, at: tuple[int, int]) -> int:
    """Returns how many pixels of a tile at a corner are taken."""
    window, part = meeting(at, inside.shape, taken.shape)
    return int(np.count_nonzero(taken[window] & inside[part]))


# Lengths in pixels of a drawn cell, whose nuclei are some 200 wide.
_GAP = 9.0  # at least, between nuclei that do not touch
# Shreds and bites are left by the cutting-out of a cell: none on a smear.
_SHRED = 15.0

_TRIES = 60  # places that are tried for one nucleus before it is left out
_OVERLAP = 0.035  # of the smaller nucleus, at most, where two touch
