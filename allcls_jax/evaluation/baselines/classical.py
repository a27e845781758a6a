"""The classical way that the paper argues against: segment, measure, classify.

k-means divides the colours of a cell into nucleus and cytoplasm, morphology cleans the
mask, and figures of texture (grey-level co-occurrence) and shape describe it. Every
figure is finite for every picture, an empty one included, and is 0 where there is
nothing to measure. The only module that imports scikit-image.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import ClusterError, kmeans2
from skimage.feature import graycomatrix, graycoprops
from skimage.measure import regionprops

# Grey levels of the brightest channel, at most: the background, which is 0, and its
# blend with the outline. The darkest pixels within a real cell have 44.
DARK = 24

# The outermost pixels of a cell are mixed with the black beside it.
_RIM = 2
# Clustering: pixels of the smoothing, the quantiles of stain at which clusters start,
# and how often they are adjusted. More of them than tissues: chromatin takes up two or
# three.
_SMOOTHING = 1.5
_STARTS = (0.01, 0.2, 0.5, 0.9)
_ROUNDS = 20
# Of the stain of the nucleus, at most, in a cluster of cytoplasm: magenta (how much
# green is absorbed beyond red and blue) and green.
_PALE_MAGENTA = 0.7
_PALE_GREEN = 0.9
_SMALL_NUCLEUS = 0.1  # of the cell; what is darker and smaller is a speck
_OPENING = 3  # radius in pixels: thinner bridges and specks are no nucleus

# Co-occurrence: grey levels of one step, distances in pixels, the four directions.
_STEP = 4
_DISTANCES = (1, 2, 4)
_ANGLES = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
_TEXTURES = ("energy", "entropy", "contrast", "correlation")
_SHAPES = (
    "area",
    "perimeter",
    "eccentricity",
    "solidity",
    "extent",
    "roundness",
)

NAMES = (
    *(f"{name} at {distance} px" for name in _TEXTURES for distance in _DISTANCES),
    *(f"{name} of the {what}" for what in ("cell", "nucleus") for name in _SHAPES),
    "nucleus share",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Segmentation:
    """Where the cell is in its picture, and its nucleus in the cell.

    Attributes:
      cell: (h, w) bool, one connected region without holes, or nothing at all.
      nucleus: (h, w) bool, a part of the cell; all of it where no cytoplasm is seen.
    """

    cell: np.ndarray
    nucleus: np.ndarray


def describe(image: np.ndarray, segmentation: Segmentation) -> np.ndarray:
    """Returns the figures of one cell, in the order of `NAMES`: (m,) float64.

    Args:
      image: (h, w, 3) uint8 RGB, a cell on black.
      segmentation: from `segment`.
    """
    cell, nucleus = segmentation.cell, segmentation.nucleus
    if not cell.any():
        return np.zeros(len(NAMES))
    box = _box(cell)
    image, cell, nucleus = image[box], cell[box], nucleus[box]
    share = np.count_nonzero(nucleus) / np.count_nonzero(cell)
    return np.concatenate(
        [
            texture(_grey(image), nucleus).ravel(),
            shape(cell),
            shape(nucleus),
            [share],
        ]
    )


def segment(image: np.ndarray) -> Segmentation:
    """Divides one picture into background, cytoplasm and nucleus.

    The cell is the largest connected region brighter than `DARK`. The optical density
    of its pixels falls into clusters. The largest is of the nucleus, unless another one
    is far darker; those much paler are cytoplasm, or what sticks to a cell. What
    opening and filling leave of the others, in one piece, is the nucleus.

    Args:
      image: (h, w, 3) uint8 RGB, a cell on black.
    """
    cell = filled(largest_region(brightest(image) > DARK))
    nucleus = np.zeros_like(cell)
    if cell.any():
        box = _box(cell)
        nucleus[box] = _nucleus(image[box], cell[box])
    return Segmentation(cell, nucleus)


def interior(cell: np.ndarray) -> np.ndarray:
    """Returns a mask (h, w) bool without its outermost pixels, or a thin one whole."""
    inner = ndimage.binary_erosion(cell, np.ones((3, 3)), iterations=_RIM)
    return inner if inner.any() else cell


def optical_density(image: np.ndarray) -> np.ndarray:
    """Returns how much light was absorbed: (…) uint8 → float32 in [0, ln 256]."""
    return _DENSITY[image]


def brightest(image: np.ndarray) -> np.ndarray:
    """Returns each pixel's brightest channel: (h, w) uint8."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def largest_region(mask: np.ndarray) -> np.ndarray:
    """Returns the largest connected region of a mask (h, w) bool."""
    labels = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, np.ones((3, 3)), output=labels)
    if count == 0:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def filled(mask: np.ndarray) -> np.ndarray:
    """Returns a mask (h, w) bool with its holes filled."""
    if not mask.any():
        return mask
    box = _box(mask)
    whole = mask.copy()
    ndimage.binary_fill_holes(mask[box], output=whole[box])
    return whole


def texture(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns figures of grey-level co-occurrence within a mask.

    Pairs of pixels count where both are in the mask, in both orders, in the four
    directions taken together: turning by quarters or mirroring changes nothing, nor
    does what lies outside.

    Args:
      grey: (h, w) uint8.
      mask: (h, w) bool.

    Returns:
      (4, 3) float64: energy, entropy (nats), contrast and correlation, of steps of 4
      grey levels, at distances of 1, 2 and 4 pixels.
    """
    if not mask.any():
        return np.zeros((len(_TEXTURES), len(_DISTANCES)))
    box = _box(mask)
    levels = np.where(mask[box], grey[box] // _STEP + 1, 0).astype(np.uint8)
    pairs = graycomatrix(
        levels, _DISTANCES, _ANGLES, levels=256 // _STEP + 1, symmetric=True
    )
    # Level 0 is outside.
    pairs = pairs[1:, 1:].sum(axis=-1, keepdims=True)
    return np.stack([graycoprops(pairs, name)[:, 0] for name in _TEXTURES])


def shape(mask: np.ndarray) -> np.ndarray:
    """Returns figures of a region's shape.

    Args:
      mask: (h, w) bool.

    Returns:
      (6,) float64: area and perimeter in pixels; eccentricity in [0, 1]; solidity, its
      share of its convex hull; extent, its share of its box; roundness, 4π area over
      perimeter squared. Zeros where the region is less than three pixels wide.
    """
    if not mask.any():
        return np.zeros(len(_SHAPES))
    inside = np.pad(mask[_box(mask)], 1)
    if not ndimage.binary_erosion(inside, np.ones((3, 3))).any():
        return np.zeros(len(_SHAPES))
    region = regionprops(inside.view(np.uint8))[0]
    area, perimeter = region.area, region.perimeter
    return np.array(
        [
            area,
            perimeter,
            region.eccentricity,
            region.solidity,
            region.extent,
            4 * np.pi * area / perimeter**2,
        ]
    )


_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def _nucleus(image: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Returns the nucleus (h, w) bool of a cell (h, w) bool."""
    inner = interior(cell & (image.min(-1) > 0))
    weight = ndimage.gaussian_filter(inner.astype(np.float32), _SMOOTHING)
    density = optical_density(image) * inner[..., np.newaxis]
    smooth = ndimage.gaussian_filter(density, (_SMOOTHING, _SMOOTHING, 0))
    colours = (smooth / np.maximum(weight, 1e-6)[..., np.newaxis])[inner]
    pale = np.zeros(cell.shape, bool)
    pale[inner] = _pale(colours)
    # The rim is as the nearest pixel within.
    nearest = ndimage.distance_transform_edt(
        ~inner, return_distances=False, return_indices=True
    )
    assert nearest is not None  # it was asked for
    stained = cell & ~pale[tuple(nearest)]
    # The frame goes on with what touches the picture's edge.
    frame = 2 * _OPENING
    framed = np.pad(stained, frame, mode="edge")
    opened = ndimage.binary_opening(framed, _disc(_OPENING))
    nucleus = largest_region(filled(opened[frame:-frame, frame:-frame]))
    return nucleus if nucleus.any() else cell


def _pale(colours: np.ndarray) -> np.ndarray:
    """Returns which colours (n, 3), in optical density, are of cytoplasm: (n,) bool."""
    magenta = _magenta(colours)
    order = np.argsort(magenta, kind="stable")
    starts = order[[int(share * len(order)) for share in _STARTS]]
    centres, cluster = _kmeans(colours, colours[starts])
    share = np.bincount(cluster, minlength=len(centres)) / len(cluster)
    strength = _magenta(centres)
    main = np.argmax(share)
    # A nucleus may be smaller than its cytoplasm.
    darker = (strength[main] < _PALE_MAGENTA * strength) & (share > _SMALL_NUCLEUS)
    if darker.any():
        main = np.argmax(np.where(darker, share, 0))
    pale = strength < _PALE_MAGENTA * strength[main]
    pale &= centres[:, 1] < _PALE_GREEN * centres[main, 1]
    return pale[cluster]


def _kmeans(values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres (k, d) and the cluster of each of the values (n, d)."""
    for dropped in range(len(starts)):
        try:
            return kmeans2(
                values, starts[dropped:], _ROUNDS, minit="matrix", missing="raise"
            )
        except ClusterError:
            # One came out empty, as where all is of one colour: try with fewer.
            continue
    raise AssertionError("one cluster cannot be empty")


def _magenta(density: np.ndarray) -> np.ndarray:
    """Returns what is absorbed of green beyond red and blue: (…, 3) → (…)."""
    return density[..., 1] - (density[..., 0] + density[..., 2]) / 2


def _grey(image: np.ndarray) -> np.ndarray:
    """Returns the luma of ITU-R BT.601: (h, w) uint8."""
    weights = np.array([299, 587, 114], np.uint32)
    return ((image @ weights) // 1000).astype(np.uint8)


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Returns the smallest rows and columns that hold all of a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _disc(radius: int) -> np.ndarray:
    line = np.arange(-radius, radius + 1)
    return np.hypot(line, line[:, np.newaxis]) <= radius + 0.1
