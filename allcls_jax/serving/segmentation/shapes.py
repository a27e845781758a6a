"""From a mask of nuclear stain to single nuclei.

A watershed of the distance to the outline parts nuclei that touch; what is too small,
too large, too ragged or too long for one nucleus, or cut by the field's edge, is left
out and counted. One of the modules that import scikit-image.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours, regionprops
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

# Why something that has the colour of a nucleus is not one of the nuclei.
_EDGE = "cut by the field's edge"
_SMALL, _LARGE = "too small", "too large"
_RAGGED, _LONG = "ragged outline", "too long"
LEFT_OUT: tuple[str, ...] = (_EDGE, _SMALL, _LARGE, _RAGGED, _LONG)

LEAST_PIXELS = 30  # of a nucleus where its outline is sought: less is nothing sure

Box = tuple[slice, slice]  # rows and columns


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShapeSettings:
    """What a single nucleus looks like.

    Attributes:
      neck: two nuclei are parted where the neck between them is narrower than this
        share of the smaller one's width.
      smallest, largest: area over the typical one; beyond, it is no single nucleus.
      least_solidity: area over that of the convex hull.
      most_eccentricity: of the ellipse of the same moments: 0 is round, 1 a line.
    """

    neck: float = 0.78
    smallest: float = 0.25
    largest: float = 3.0
    least_solidity: float = 0.82
    most_eccentricity: float = 0.93


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Nucleus:
    """One nucleus.

    Attributes:
      box: the rows and columns of the field that hold it and no less.
      mask: (h, w) bool, its pixels within the box: one connected region, no holes.
    """

    box: Box
    mask: np.ndarray

    @property
    def area(self) -> int:
        """Field pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """Left, top, width and height, field pixels."""
        rows, columns = self.box
        height, width = self.mask.shape
        return columns.start, rows.start, width, height

    def outline(self) -> np.ndarray:
        """Returns the closed outline as x and y, field pixels: (n, 2) float64.

        The upper left corner of the field's first pixel is 0, 0.
        """
        lines = find_contours(np.pad(self.mask, 1).astype(np.float32), 0.5)
        line = approximate_polygon(max(lines, key=len), _OUTLINE_TOLERANCE)
        rows, columns = self.box
        return line[:, ::-1] - 0.5 + [columns.start, rows.start]


def typical_area(mask: np.ndarray, settings: ShapeSettings) -> float | None:
    """Returns the median area of nuclei, in pixels of the mask, or None."""
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(ndimage.binary_fill_holes(mask), output=labels)
    keep = np.bincount(labels.ravel()) >= LEAST_PIXELS
    areas = [
        int(np.count_nonzero(part))
        for number, box in enumerate(ndimage.find_objects(labels), 1)
        if box is not None and keep[number]
        for part, _ in _parted(labels[box] == number, 0.0, settings.neck)
    ]
    if not areas:
        return None
    typical = _median_by_area(areas)
    for _ in range(2):
        nuclei, _ = find_nuclei(mask, typical, settings)
        if not nuclei:
            break
        typical = float(np.median([nucleus.area for nucleus in nuclei]))
    return typical


def red_cell_area(pale: np.ndarray) -> float | None:
    """Returns the median area of red cells that lie alone, or None if there are few.

    Args:
      pale: (h, w) bool, what is stained, but not as nuclei are.
    """
    labels = np.empty(pale.shape, np.int32)
    filled = ndimage.binary_fill_holes(ndimage.binary_opening(pale, iterations=2))
    ndimage.label(filled, output=labels)
    areas = [
        region.area
        for region in regionprops(labels)
        if region.area >= LEAST_PIXELS
        and not _at_edge(region.bbox, pale.shape)
        and region.solidity > 0.94
        and region.eccentricity < 0.75
    ]
    if len(areas) < 3:
        return None
    return _median_by_area(areas)


def find_nuclei(
    mask: np.ndarray, typical: float, settings: ShapeSettings
) -> tuple[list[Nucleus], dict[str, int]]:
    """Returns the nuclei of a mask of nuclear stain, and what was left out.

    Args:
      mask: (h, w) bool.
      typical: area of a nucleus, pixels of the mask.
      settings: as of `segment`.
    """
    radius = np.sqrt(typical / np.pi)
    whole = _without_holes(mask, _LARGEST_HOLE * typical)
    clean = _opened(whole, 2 * _BRIDGE * radius)
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(clean, output=labels)
    left_out = dict.fromkeys(LEFT_OUT, 0)
    nuclei = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        assert box is not None  # no number is left out
        region = _without_holes(labels[box] == number, _LARGEST_HOLE * typical)
        if np.count_nonzero(region) < _SPECK * typical:
            continue
        for nucleus, inner in _parted_again(region, radius, typical, settings):
            rows, columns = _moved(inner, box)
            part = np.asarray(ndimage.binary_fill_holes(nucleus), bool)
            reason = _reason(part, (rows, columns), mask.shape, typical, settings)
            if reason is None:
                nuclei.append(Nucleus((rows, columns), part))
            else:
                left_out[reason] += 1
    return nuclei, left_out


def _median_by_area(areas: Sequence[float]) -> float:
    """Returns the area that half of all pixels are beyond: specks hardly count."""
    order = np.sort(areas)
    running = np.cumsum(order)
    return float(order[np.searchsorted(running, running[-1] / 2)])


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    """Returns the mask without what is narrower than twice the radius."""
    if radius < 1:
        return mask
    pad = int(radius) + 2
    framed = np.pad(mask, pad, mode="edge")  # goes on beyond the field's edge
    core = _depth(framed) > radius
    opened = _depth(~core) <= radius
    return opened[pad:-pad, pad:-pad] & mask


def _without_holes(region: np.ndarray, largest: float) -> np.ndarray:
    """Returns the region with its holes of up to `largest` pixels filled."""
    holes = ndimage.binary_fill_holes(region) & ~region
    if not holes.any():
        return region
    labels = np.empty(region.shape, np.int32)
    ndimage.label(holes, output=labels)
    small = np.bincount(labels.ravel()) <= largest
    small[0] = False
    return region | small[labels]


def _parted_again(
    region: np.ndarray, radius: float, typical: float, settings: ShapeSettings
) -> Iterator[tuple[np.ndarray, Box]]:
    """Yields as `_parted`; what is large or dented is parted more boldly."""
    for part, box in _parted(region, radius, settings.neck):
        area = np.count_nonzero(part)
        if area <= settings.largest * typical and (
            area < settings.smallest * typical or _solidity(part) >= _DENTED
        ):
            yield part, box
            continue
        for smaller, inner in _parted(part, radius, _NECK_OF_CLUMPS):
            yield smaller, _moved(inner, box)


def _moved(inner: Box, outer: Box) -> Box:
    """Returns a box within another one as a box of the whole."""
    rows, columns = (
        slice(whole.start + part.start, whole.start + part.stop)
        for whole, part in zip(outer, inner, strict=True)
    )
    return rows, columns


def _parted(
    region: np.ndarray, radius: float, neck: float
) -> Iterator[tuple[np.ndarray, Box]]:
    """Yields each nucleus of a connected region: its mask and the box it is of."""
    depth = _depth(np.pad(region, 1))[1:-1, 1:-1]
    # Of the logarithm, a maximum's height over its saddle is the neck's share. Maxima
    # that are less than that above their saddles flow together.
    height = np.log(np.maximum(depth, 0.5))
    level = reconstruction(height + np.log(neck), height)
    least = max(_LEAST_PEAK * radius, _LEAST_BULGE * float(depth.max()))
    peaks = local_maxima(level) & (depth >= least)
    markers = np.empty(region.shape, np.int32)
    count = ndimage.label(peaks, np.ones((3, 3)), output=markers)
    if count == 0 or markers.max() < 2:
        yield region, (slice(0, region.shape[0]), slice(0, region.shape[1]))
        return
    basins = watershed(-depth, markers, mask=region)
    for number, box in enumerate(ndimage.find_objects(basins), 1):
        yield basins[box] == number, box


def _reason(
    mask: np.ndarray,
    box: Box,
    shape: tuple[int, ...],
    typical: float,
    settings: ShapeSettings,
) -> str | None:
    """Returns why a region is left out, or None if it is a nucleus."""
    rows, columns = box
    area = np.count_nonzero(mask)
    if area < max(settings.smallest * typical, LEAST_PIXELS):
        return _SMALL
    if _at_edge((rows.start, columns.start, rows.stop, columns.stop), shape):
        return _EDGE
    if area > settings.largest * typical:
        return _LARGE
    region = regionprops(mask.astype(np.uint8))[0]
    if region.solidity < settings.least_solidity:
        return _RAGGED
    if region.eccentricity > settings.most_eccentricity:
        return _LONG
    return None


def _solidity(mask: np.ndarray) -> float:
    return float(regionprops(mask.astype(np.uint8))[0].solidity)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Returns each pixel's distance to the nearest one that is False."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask))


def _at_edge(bbox: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    top, left, bottom, right = bbox
    return top == 0 or left == 0 or bottom == shape[0] or right == shape[1]


_OUTLINE_TOLERANCE = 0.4  # pixels that an outline may be off
_LARGEST_HOLE = 0.04  # of a typical nucleus; a larger one is a gap between nuclei
_BRIDGE = 0.09  # of a typical nucleus's width: what is thinner is no nucleus
_SPECK = 0.02  # of a typical nucleus: not even worth counting
_NECK_OF_CLUMPS = 0.93  # in place of `ShapeSettings.neck`, where it is likely
_DENTED = 0.9  # solidity: less may be several nuclei
_LEAST_BULGE = 0.25  # of the deepest point: a shallower one is no nucleus of its own
_LEAST_PEAK = 0.4  # of a typical nucleus's radius: a narrower bulge is no nucleus
