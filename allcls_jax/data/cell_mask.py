"""Which pixels of a picture of one cell are the cell's, and which are background.

Only the brightest channel is looked at. A pixel that is black is never the cell's.
"""

import numpy as np
from scipy import ndimage

Box = tuple[slice, slice]  # rows and columns

# Grey levels of the brightest channel. On the C-NMC pictures the noise that JPEG leaves
# beside a cell stays below 24 or, where the cell is brighter, below 0.3 of its level;
# the darkest pixel inside a cell has 44.
_DARK = 24
_DARK_SHARE = 0.3
# An enclosed dark region that comes down to this is a hole in the mask, not dark stain.
_HOLE = 8
# Faint pixels this near to the cell, in pixels, may be its own soft edge.
_SOFT_EDGE = 2


def find_cell(
    level: np.ndarray, box: Box, shape: tuple[int, int]
) -> tuple[Box, np.ndarray] | None:
    """Returns where the cell of a picture is.

    Args:
      level: (h, w) uint8, of the brightest channel, where the picture is not black.
      box: the rows and columns of the picture that `level` is of, from `box_of`.
      shape: height and width of the picture, pixels.

    Returns:
      Rows and columns of the picture, and which of these pixels are the cell's, none of
      them black; or None where the picture is to stay as it is.
    """
    sides = (level[:1], level[-1:], level[:, :1].T, level[:, -1:].T)
    ends = [
        end
        for part, length in zip(box, shape, strict=True)
        for end in (part.start == 0, part.stop == length)
    ]
    beside = sum(
        int(np.count_nonzero(side > _DARK))
        for side, at_the_edge in zip(sides, ends, strict=True)
        if at_the_edge
    )
    if beside > sum(shape):
        return None
    histogram = np.bincount(level.ravel(), minlength=256)
    if not histogram[_DARK + 1 :].any():
        return None
    threshold = max(_DARK, int(_DARK_SHARE * _median_above(histogram, _DARK)))
    bright = level > threshold
    inner = box_of(bright)
    if not _noisy(level, bright, inner):
        return box, _largest_region(level > 0)
    cell = _with_dark_stain(_largest_region(bright[inner]), level[inner])
    rows, columns = (
        slice(outer.start + part.start, outer.start + part.stop)
        for outer, part in zip(box, inner, strict=True)
    )
    return (rows, columns), cell


def box_of(mask: np.ndarray) -> Box:
    """The smallest rows and columns that hold all of the mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _noisy(level: np.ndarray, bright: np.ndarray, box: Box) -> bool:
    """Whether there are faint pixels that are no soft edge of what is bright."""
    # Mostly told by the boxes: pixels at the sides of `level` are not black.
    for length, part in zip(level.shape, box, strict=True):
        if part.start > _SOFT_EDGE or length - part.stop > _SOFT_EDGE:
            return True
    return bool(((level > 0) & ~_widen(bright, _SOFT_EDGE)).any())


def _median_above(histogram: np.ndarray, floor: int) -> int:
    """The median of the values above `floor`, of which there is at least one."""
    running = np.cumsum(histogram[floor + 1 :])
    return floor + 1 + int(np.searchsorted(running, (running[-1] + 1) // 2))


def _widen(mask: np.ndarray, reach: int) -> np.ndarray:
    """Returns the mask with all pixels within a square of `reach` pixels around it."""
    for axis in (0, 1):
        mask = np.moveaxis(mask, axis, 0)
        wide = mask.copy()
        for step in range(1, reach + 1):
            wide[step:] |= mask[:-step]
            wide[:-step] |= mask[step:]
        mask = np.moveaxis(wide, 0, axis)
    return mask


def _largest_region(mask: np.ndarray) -> np.ndarray:
    """Returns the largest set of pixels that touch at a side or corner."""
    labels, count = _regions(mask, corners=True)
    if count == 1:
        return mask
    sizes = np.bincount(labels.ravel())
    return labels == 1 + np.argmax(sizes[1:])


def _regions(mask: np.ndarray, *, corners: bool) -> tuple[np.ndarray, int]:
    """Numbers the connected regions from 1; returns the numbers and how many."""
    labels = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, np.ones((3, 3)) if corners else None, output=labels)
    assert isinstance(count, int)  # with `output`, scipy returns nothing else
    return labels, count


def _with_dark_stain(cell: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Returns the cell with the enclosed regions that are dark but not empty."""
    # A frame joins everything outside the cell into one region.
    labels, count = _regions(np.pad(~cell, 1, constant_values=True), corners=False)
    if count == 1:
        return cell
    inside = labels[1:-1, 1:-1]
    darkest = np.full(count + 1, 255, np.uint8)
    np.minimum.at(darkest, inside.ravel(), level.ravel())
    stain = darkest > _HOLE
    stain[[0, labels[0, 0]]] = False
    return cell | stain[inside]
